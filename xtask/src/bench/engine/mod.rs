//! One engine beside llama-server, both as servers with all cores, asked in turns: what a client sees of prefill,
//! of decode at an empty and at a long context, of many clients at once, and of a shared prefix.
//!
//! Both run all the time and only one is asked at a time, so both meet the same machine. Prompts are fresh random
//! tokens, so no prefix cache answers, but where the prefix is what is measured.

mod floor;
mod perplexity;
mod prefix;
pub(super) mod process;
pub mod serving;
mod single;
mod subject;

use super::report::{Report, Row, Samples, Target};
use anyhow::Result;

/// Measures the subjects named, or all.
pub fn measure(names: &[String]) -> Result<Report> {
    let subjects = subject::chosen(names)?;
    super::llama::install()?;
    let mut report = Report::new("engine");
    for subject in subjects {
        let model = (subject.path)()?;
        let floor = floor::measure(&model)?;
        single::measure(subject, &model, &floor, &mut report)?;
        serving::measure(subject, &model, &mut report)?;
        prefix::measure(subject, &model, &mut report)?;
        perplexity::measure(subject, &model, &mut report)?;
    }
    Ok(report)
}

/// Which way a ratio is held.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Adds a comparison and the target that its ratio is held to. `floor` is the best that the machine's memory or
/// arithmetic would allow, in the unit of the case.
fn add(report: &mut Report, case: String, unit: &'static str, samples: &Samples, bound: Bound, floor: Option<f64>) {
    let row = Row::of_quantile(case, unit, 0.5, samples).with_floor(floor);
    let name = format!("ratio: {}", row.case);
    report.targets.push(match bound {
        Bound::AtLeast(least) => Target::at_least(name, row.ratio, least),
        Bound::AtMost(most) => Target::at_most(name, row.ratio, most),
    });
    report.rows.push(row);
}
