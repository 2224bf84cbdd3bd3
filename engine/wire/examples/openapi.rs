//! Prints the OpenAPI document: `cargo run --release -p engine-wire --example openapi > docs/openapi.json`.

fn main() -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string_pretty(&engine_wire::openapi::document())?);
    Ok(())
}
