//! Panels of the GPU view. On a node without GPUs they stay empty, which is the truth.

use super::{Panel, Unit, query};

pub const PANELS: &[Panel] = &[
    Panel {
        title: "GPU work",
        description: "Share of the time in which anything ran, and from Hopper on how much of the card that was.",
        unit: Unit::Share,
        queries: &[
            query("max by (gpu) (foreshock_gpu_busy_ratio)", "busy: {{gpu}}"),
            query("max by (gpu, unit) (foreshock_gpu_counter_ratio)", "{{unit}}: {{gpu}}"),
        ],
    },
    Panel {
        title: "GPU memory",
        description: "Memory in use, in all, and of each model's engines.",
        unit: Unit::Bytes,
        queries: &[
            query("max by (gpu) (foreshock_gpu_memory_used_bytes)", "used: {{gpu}}"),
            query("max by (gpu) (foreshock_gpu_memory_bytes)", "there is: {{gpu}}"),
            query("max by (gpu, model) (foreshock_gpu_model_memory_bytes{model=~\"$model\"})", "{{model}}: {{gpu}}"),
            query("max by (gpu, direction) (foreshock_gpu_pcie_bytes_per_second)", "PCIe {{direction}}/s: {{gpu}}"),
        ],
    },
    Panel {
        title: "GPU power and clocks",
        description: "Watts, degrees Celsius and clocks in GHz; a reason stands at 1 while it holds clocks down.",
        unit: Unit::Count,
        queries: &[
            query("max by (gpu) (foreshock_gpu_power_watts)", "W: {{gpu}}"),
            query("max by (gpu) (foreshock_gpu_temperature_celsius)", "C: {{gpu}}"),
            query("max by (gpu, clock) (foreshock_gpu_clock_hertz) / 1e9", "{{clock}}, GHz: {{gpu}}"),
            query("max by (gpu, reason) (foreshock_gpu_throttled)", "{{reason}}: {{gpu}}"),
        ],
    },
    Panel {
        title: "GPU health",
        description: "Whether a GPU can be read, and errors of the last hour.",
        unit: Unit::Count,
        queries: &[
            query("min by (gpu) (foreshock_gpu_up)", "up: {{gpu}}"),
            query("max by (gpu, name) (foreshock_gpu_info)", "{{gpu}}: {{name}}"),
            query("increase(foreshock_gpu_xid_errors_total[1h]) or vector(0)", "Xid in 1 h: {{gpu}}"),
            query("increase(foreshock_gpu_ecc_errors_total[1h]) or vector(0)", "ECC {{kind}} in 1 h: {{gpu}}"),
        ],
    },
    Panel {
        title: "CUDA calls",
        description: "Calls into CUDA's driver library by model, in the windows of `serve --cuda-probes`. Kernels inside of graphs are not counted.",
        unit: Unit::PerSecond,
        queries: &[
            query("max by (model, call) (foreshock_cuda_calls_per_second{model=~\"$model\"})", "{{call}}: {{model}}"),
            query(
                "max by (model, call) (foreshock_cuda_bytes_per_second{model=~\"$model\"})",
                "{{call}}, bytes: {{model}}",
            ),
        ],
    },
];
