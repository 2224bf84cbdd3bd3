//! Prints the OpenAPI document: `cargo run --release -p engine-wire --example openapi > docs/openapi.json`.

fn main() -> Result<(), serde_json::Error> {
    let mut document = engine_wire::openapi::document();
    // In a fixed order, whatever the order in which the tables were put together.
    document.sort_all_objects();
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}
