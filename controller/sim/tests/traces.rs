//! Traces of all formats, whole and broken: what is read, what an error says, what a repair counts.

use controller_sim::trace::generate::{Shape, generate};
use controller_sim::trace::{Arrival, Load, Options, Trace, TraceError, read};
use proptest::prelude::*;
use std::io::Write;

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109";

fn parse(text: &str, repair: bool) -> Result<Trace, TraceError> {
    read("t", text.as_bytes(), Options { repair })
}

/// The trace in one line: duration, then each arrival or count.
fn shown(trace: &Trace) -> String {
    let load = match &trace.load {
        Load::Requests(arrivals) => arrivals
            .iter()
            .map(|a| {
                let name = &trace.models[a.model as usize];
                let ms = a.at_ns as f64 / 1e6;
                format!("{ms} {name} {}+{} {:?}", a.prompt_tokens, a.output_tokens, a.prefix)
            })
            .collect::<Vec<_>>(),
        Load::Counts { bin_ns, counts } => vec![format!("per {} s: {counts:?}", bin_ns / 1_000_000_000)],
    };
    load.join("; ")
}

/// The error without repair, and what repair makes of the same text.
fn both(text: &str) -> String {
    let error = parse(text, false).err().map_or_else(|| "no error".to_owned(), |error| error.to_string());
    let error = error.trim_end_matches("; a repair mends such lines and counts them");
    match parse(text, true) {
        Ok(trace) => format!("{error} | {} | {}", trace.repairs, shown(&trace)),
        Err(repaired) => format!("{error} | {repaired}"),
    }
}

#[test]
fn whole_traces_are_read() {
    insta::assert_snapshot!(both(AZURE), @"no error | none | 0 model 374+44 []; 4314.579 model 396+109 []");
    insta::assert_snapshot!(both(
        "TIMESTAMP,ContextTokens,GeneratedTokens,Model\n2023-11-16 00:00:01,3,4,zeta\n2023-11-16 00:00:02,5,6,alpha\n"
    ), @"no error | none | 0 zeta 3+4 []; 1000 alpha 5+6 []");
    insta::assert_snapshot!(both(
        "{\"timestamp\": 0, \"input_length\": 6, \"output_length\": 5, \"hash_ids\": [0, 14]}\n{\"timestamp\": 1.5, \"input_length\": 7, \"output_length\": 4}\n"
    ), @"no error | none | 0 model 6+5 [0, 14]; 1.5 model 7+4 []");
    insta::assert_snapshot!(both("# requests per 600 s bin; ServeGen\n12\n0\n7\n\n"), @"no error | none | per 600 s: [12, 0, 7]");
    insta::assert_snapshot!(both("\u{feff}3\r\n4\r\n"), @"no error | none | per 10 s: [3, 4]");
}

#[test]
fn broken_lines_are_named_or_mended() {
    let azure =
        |lines: &str| both(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:00,1,2\n{lines}"));
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,1\n"), @"t:3:23: 2 columns where the header has 3 | 1 wrong columns | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,1,2,3\n"), @"t:3:25: 4 columns where the header has 3 | 1 wrong columns | 0 model 1+2 []");
    insta::assert_snapshot!(azure("16.11.2023,1,2\n"), @"t:3:1: `16.11.2023` is not a time like 2023-11-16 18:15:46.68 | 1 no number | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,-1,2\n"), @"t:3:21: ContextTokens is `-1`, not a whole number from 1 to 100000000 | 1 negative | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,1,NaN\n"), @"t:3:23: GeneratedTokens is `NaN`, not a whole number from 1 to 100000000 | 1 no number | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,99999999999999999999,2\n"), @"t:3:21: ContextTokens is `99999999999999999999`, not a whole number from 1 to 100000000 | 1 huge | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:01,1,0\n"), @"t:3:23: a request of 0 tokens | 1 zero length | 0 model 1+2 []; 1000 model 1+1 []");
    insta::assert_snapshot!(azure("2023-11-16 00:00:00,1,2\n"), @"t:3:1: the line before once more | 1 duplicate | 0 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-15 23:59:59,7,8\n"), @"t:3:1: 1 s earlier than a line above | 1 out of order | 0 model 7+8 []; 1000 model 1+2 []");
    insta::assert_snapshot!(azure("2023-11-18 00:00:00,7,8\n"), @"t:3:1: nothing for 48 hours before this | 1 gap | 0 model 1+2 []; 0 model 7+8 []");
    let mooncake = |line: &str| both(&format!("{{\"timestamp\":0,\"input_length\":6,\"output_length\":5}}\n{line}\n"));
    insta::assert_snapshot!(mooncake("{\"timestamp\":1,\"input_length\":6}"), @"t:2:32: missing field `output_length` | 1 wrong columns | 0 model 6+5 []");
    insta::assert_snapshot!(mooncake("{\"timestamp\":1,\"input_length\":-6,\"output_length\":1}"), @"t:2:16: input_length is `-6`, not a whole number from 1 to 100000000 | 1 negative | 0 model 6+5 []");
    insta::assert_snapshot!(mooncake("{\"timestamp\":-1,\"input_length\":6,\"output_length\":1}"), @"t:2:2: timestamp is -1 | 1 negative | 0 model 6+5 []");
    insta::assert_snapshot!(mooncake("{\"timestamp\":1,\"input_length\":6,\"output_length\":1e300}"), @"t:2:33: output_length is `1e+300`, not a whole number from 1 to 100000000 | 1 huge | 0 model 6+5 []");
    insta::assert_snapshot!(mooncake("{\"timestamp\":1,\"input_length\":6,"), @"t:2:32: EOF while parsing a value | 1 no number | 0 model 6+5 []");
    insta::assert_snapshot!(mooncake("{\"timestamp\":1,\"input_length\":\"six\",\"output_length\":1}"), @r#"t:2:35: invalid type: string "six", expected a JSON number | 1 wrong columns | 0 model 6+5 []"#);
    insta::assert_snapshot!(both("5\n\n6\n"), @"t:3:1: a line without a count before this | 1 gap | per 10 s: [5, 5, 6]");
    insta::assert_snapshot!(both("5\n-6\n"), @"t:2:1: `-6` is not a count from 0 to 1000000000 | 1 negative | per 10 s: [5]");
    insta::assert_snapshot!(both("5\n6,7\n"), @"t:2:2: more than one column | 1 wrong columns | per 10 s: [5]");
    insta::assert_snapshot!(both("5\n 1e30\n"), @"t:2:2: `1e30` is not a count from 0 to 1000000000 | 1 huge | per 10 s: [5]");
    insta::assert_snapshot!(both(""), @"t: no requests in it | t: no requests in it");
    insta::assert_snapshot!(both("0\n0\n"), @"t: no requests in it | t: no requests in it");
    insta::assert_snapshot!(both("TIMESTAMP,ContextTokens,GeneratedTokens\n"), @"t: no requests in it | t: no requests in it");
    insta::assert_snapshot!(both("a,b,c\n1,2,3\n"), @"t:1:1: neither `TIMESTAMP,ContextTokens,GeneratedTokens[,Model]`, nor JSON lines, nor counts per bin | t:1:1: neither `TIMESTAMP,ContextTokens,GeneratedTokens[,Model]`, nor JSON lines, nor counts per bin");
}

#[test]
fn gzipped_traces_are_read() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(AZURE.as_bytes()).expect("writes to memory");
    let packed = packed.finish().expect("ends");
    let trace = read("t", &packed[..], Options::default()).expect("reads");
    assert_eq!(trace, parse(AZURE, false).expect("reads"));
    let cut = read("t", &packed[..packed.len() / 2], Options::default());
    assert!(matches!(cut, Err(TraceError::Read { .. })), "{cut:?}");
}

#[test]
fn counts_become_bins_and_arrivals() {
    let trace = parse("# requests per 60 s bin\n120\n0\n60\n", false).expect("reads");
    assert_eq!(trace.bins(60.0), [120.0, 0.0, 60.0]);
    assert_eq!(trace.bins(120.0), [120.0, 60.0]);
    assert_eq!(trace.bins(30.0), [60.0, 60.0, 0.0, 0.0, 30.0, 30.0]);
    let window = trace.window(30_000_000_000, 150_000_000_000, 3);
    assert!(window.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
    assert!(window.iter().all(|a| a.at_ns < 120_000_000_000 && !(30_000_000_000..90_000_000_000).contains(&a.at_ns)));
    assert!((60..=120).contains(&window.len()), "{}", window.len());
    assert_eq!(trace.window(0, u64::MAX, 3).len(), 180);
}

#[test]
fn generated_traces_keep_their_rates() {
    let check = |shape: Shape, per_s: std::ops::Range<f64>| {
        let trace = generate(shape, 7200.0, 5);
        let rate_per_s = trace.requests() as f64 / 7200.0;
        assert!(per_s.contains(&rate_per_s), "{shape:?}: {rate_per_s}");
        assert_eq!(trace, generate(shape, 7200.0, 5));
        assert_ne!(trace, generate(shape, 7200.0, 6));
    };
    check(Shape::Poisson { rate_per_s: 2.0 }, 1.9..2.1);
    check(Shape::Bursty { rate_per_s: 1.0, times: 10.0 }, 1.2..3.5);
    check(Shape::Diurnal { peak_per_s: 4.0, period_s: 3600.0 }, 2.0..2.4);
    check(Shape::FlashCrowd { rate_per_s: 1.0, times: 20.0 }, 1.2..1.4);
    check(Shape::Sparse { models: 100, rate_per_s: 1.0 }, 0.8..1.2);
}

proptest! {
    /// With repair, whatever the lines are: a trace in order whose every number is in bounds, or an error.
    #[test]
    fn any_lines_give_a_sound_trace(lines in prop::collection::vec(line(), 0..40), header in 0..4usize) {
        let header = ["TIMESTAMP,ContextTokens,GeneratedTokens\n", "TIMESTAMP,ContextTokens,GeneratedTokens,Model\n", "# requests per 5 s bin\n", ""][header];
        if let Ok(trace) = parse(&format!("{header}{}", lines.join("\n")), true) {
            prop_assert!(trace.requests() > 0);
            if let Load::Requests(arrivals) = &trace.load {
                let sound = |a: &Arrival| a.prompt_tokens > 0 && a.output_tokens > 0 && a.at_ns < trace.duration_ns && (a.model as usize) < trace.models.len();
                prop_assert!(arrivals.iter().all(sound));
                prop_assert!(arrivals.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
            }
        }
    }

    /// What is read without repair is read with it, and then nothing was mended.
    #[test]
    fn repair_leaves_whole_traces_alone(gaps_ms in prop::collection::vec(1u64..60_000, 1..50)) {
        let mut at_ms = 0;
        let text: String = gaps_ms.iter().map(|gap_ms| {
            at_ms += gap_ms;
            format!("{{\"timestamp\":{at_ms},\"input_length\":{gap_ms},\"output_length\":2}}\n")
        }).collect();
        let (strict, mended) = (parse(&text, false), parse(&text, true));
        prop_assert_eq!(strict.expect("reads"), mended.expect("reads"));
    }
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u32..30, -2i64..900, -2i64..900).prop_map(|(s, p, o)| format!("2023-11-{:02} 00:00:{s:02}.5,{p},{o}", 1 + s)),
        (0u32..60, 1u32..900).prop_map(|(s, p)| format!("2023-11-16 00:00:{s:02},{p},7,m{}", p % 3)),
        (-2i64..100_000, 0i64..900)
            .prop_map(|(t, p)| format!("{{\"timestamp\":{t},\"input_length\":{p},\"output_length\":9}}")),
        (-3i64..400).prop_map(|count| count.to_string()),
        "[ -~]{0,30}",
    ]
}
