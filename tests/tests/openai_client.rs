//! The openai Python package, unchanged, against a model that begins at zero instances.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, workspace_root};
use std::process::Command;

#[test]
fn openai_package_works_unchanged() -> Result<()> {
    run("openai_client.py")
}

#[test]
fn tools_are_called_as_their_schemas_say() -> Result<()> {
    run("openai_tools.py")
}

/// Runs a client against a Foreshock of its own.
fn run(client: &str) -> Result<()> {
    let foreshock = Foreshock::start(&[])?;
    foreshock.add_model("smollm2")?;
    let python = workspace_root().join("target/venv/bin/python");
    let output = Command::new(&python)
        .arg(workspace_root().join("tests/clients").join(client))
        .arg(format!("http://{}/v1", foreshock.data))
        .arg("smollm2")
        .output()
        .with_context(|| format!("running {} (`cargo xtask setup` makes it)", python.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    println!("{stdout}");
    ensure!(output.status.success(), "the client failed:\n{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(stdout.ends_with("all passed\n"), "the client stopped early:\n{stdout}");
    Ok(())
}
