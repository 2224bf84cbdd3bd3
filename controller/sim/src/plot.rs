//! Plots of simulated runs, as SVG and as PNG: load against capacity, the distribution of times to first token, cost. Labels are
//! set in a font that comes along, so that they look alike on every machine.

use crate::fleet::{Moment, Report, quantile};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Size of a plot, pixels.
const SIZE: (u32, u32) = (1000, 520);
/// Colours of the curves, told apart by most eyes (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];
/// Points of a distribution.
const QUANTILES: usize = 200;

/// A plot that could not be drawn or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw {path}: {why}")]
pub struct PlotError {
    path: String,
    why: String,
}

type Drawn = Result<(), Box<dyn Error>>;

/// One figure.
enum Figure {
    /// Curves over time, s.
    Curves { title: String, curves: Vec<(String, Vec<(f64, f64)>)> },
    /// Distributions over milliseconds, logarithmic.
    Distributions(Vec<(String, Vec<(f64, f64)>)>),
    /// A cost and an attainment each.
    Costs(Vec<(String, f64, f64)>),
}

/// Writes every plot of these runs into a folder, each as SVG and PNG, and says where. A device costs `price_per_h`.
pub fn write(folder: &Path, reports: &[Report], price_per_h: f64) -> Result<Vec<PathBuf>, PlotError> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Only an unreadable font is refused, and this one is part of the program.
        let _known = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
    });
    let mut figures: Vec<(String, Figure)> =
        reports.iter().map(|report| (format!("load-{}", report.policy), load(report))).collect();
    let ttft = |report: &Report| (report.policy.clone(), distribution(&report.ttft_ms));
    figures.push(("ttft".to_owned(), Figure::Distributions(reports.iter().map(ttft).collect())));
    let cost = |report: &Report| (report.policy.clone(), report.device_s / 3600.0 * price_per_h, report.attainment());
    figures.push(("cost".to_owned(), Figure::Costs(reports.iter().map(cost).collect())));
    let mut paths = Vec::new();
    for (name, figure) in figures {
        paths.extend(both(folder, &name, &figure)?);
    }
    Ok(paths)
}

fn load(report: &Report) -> Figure {
    let curve = |name: &str, of: fn(&Moment) -> f64| {
        (name.to_owned(), report.moments.iter().map(|moment| (moment.at_s, of(moment))).collect())
    };
    Figure::Curves {
        title: format!("Load and capacity: {}", report.policy),
        curves: vec![
            curve("requests present", |moment| f64::from(moment.present)),
            curve("requests held", |moment| f64::from(moment.held)),
            curve("devices in use", |moment| f64::from(moment.devices)),
            curve("instances ready", |moment| f64::from(moment.ready)),
        ],
    }
}

/// Share of requests at or below a time, at so many shares.
fn distribution(sorted_ms: &[f32]) -> Vec<(f64, f64)> {
    let shares = (1..=QUANTILES).map(|at| at as f64 / QUANTILES as f64);
    shares.map(|share| (quantile(sorted_ms, share).max(1.0), share)).collect()
}

/// Draws a figure once onto SVG and once onto a bitmap that becomes a PNG.
fn both(folder: &Path, name: &str, figure: &Figure) -> Result<[PathBuf; 2], PlotError> {
    let (svg, png) = (folder.join(format!("{name}.svg")), folder.join(format!("{name}.png")));
    let failed = |path: &Path, why: String| PlotError { path: path.display().to_string(), why };
    figure.draw(SVGBackend::new(&svg, SIZE)).map_err(|why| failed(&svg, why.to_string()))?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    let drawn = figure.draw(BitMapBackend::with_buffer(&mut pixels, SIZE));
    drawn.and_then(|()| encode(&png, &pixels)).map_err(|why| failed(&png, why.to_string()))?;
    Ok([svg, png])
}

fn encode(path: &Path, pixels: &[u8]) -> Drawn {
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut encoder = png::Encoder::new(file, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(())
}

impl Figure {
    fn draw<B: DrawingBackend>(&self, backend: B) -> Drawn
    where
        B::ErrorType: 'static,
    {
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        match self {
            Self::Curves { title, curves } => draw_curves(&area, title, curves)?,
            Self::Distributions(curves) => draw_distributions(&area, curves)?,
            Self::Costs(costs) => draw_costs(&area, costs)?,
        }
        area.present()?;
        Ok(())
    }
}

/// The part of a set of curves that has something on it: most of x and of y, never nothing.
fn extent(curves: &[(String, Vec<(f64, f64)>)]) -> (f64, f64) {
    let points = curves.iter().flat_map(|(_, points)| points);
    points.fold((1.0, 1.0), |(x, y): (f64, f64), point| (x.max(point.0), y.max(point.1)))
}

fn draw_curves<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    curves: &[(String, Vec<(f64, f64)>)],
) -> Drawn
where
    B::ErrorType: 'static,
{
    let (most_x, most_y) = extent(curves);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..most_x, 0.0..most_y * 1.05)?;
    chart.configure_mesh().x_desc("time, s").y_desc("count").light_line_style(WHITE).draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        let colour = *colour;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}

fn draw_distributions<B: DrawingBackend>(area: &DrawingArea<B, Shift>, curves: &[(String, Vec<(f64, f64)>)]) -> Drawn
where
    B::ErrorType: 'static,
{
    let most_ms = extent(curves).0.max(10.0);
    let points = curves.iter().flat_map(|(_, points)| points);
    let least_ms = points.map(|point| point.0).fold(most_ms, f64::min).min(most_ms / 2.0);
    let mut chart = ChartBuilder::on(area)
        .caption("Time to first token", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d((least_ms..most_ms).log_scale(), 0.0..1.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc("ms, logarithmic").y_desc("share of requests").light_line_style(WHITE);
    mesh.x_label_formatter(&|ms| format!("{ms:.0}")).draw()?;
    for ((name, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        let colour = *colour;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2));
    labels.draw()?;
    Ok(())
}

fn draw_costs<B: DrawingBackend>(area: &DrawingArea<B, Shift>, costs: &[(String, f64, f64)]) -> Drawn
where
    B::ErrorType: 'static,
{
    let most = costs.iter().map(|cost| cost.1).fold(0.01, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Cost, with the share of requests within their targets", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..most * 1.15, 0.0..costs.len().max(1) as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc("cost").light_line_style(WHITE).draw()?;
    for (at, ((name, cost, attainment), colour)) in costs.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let top = (costs.len() - at) as f64;
        chart.draw_series([Rectangle::new([(0.0, top - 0.2), (*cost, top - 0.8)], colour.filled())])?;
        let text = format!("{name}: {cost:.2}, {:.2}%", 100.0 * attainment);
        chart.draw_series([Text::new(text, (most * 0.01, top - 0.15), ("sans-serif", 15))])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_written_whole_and_with_labels() {
        let folder = std::env::temp_dir().join(format!("foreshock-plots-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let moment = Moment { at_s: 5.0, present: 3, ..Moment::default() };
        let report = Report {
            policy: "ours".to_owned(),
            ttft_ms: vec![10.0, 20.0, 4000.0],
            moments: vec![Moment::default(), moment],
            ..Report::default()
        };
        // A run of nothing is drawn too.
        let paths = write(&folder, &[report, Report::default()], 2.0).expect("draws");
        assert_eq!(paths.len(), 8);
        for path in &paths {
            let bytes = std::fs::read(path).expect("is there");
            if path.extension().is_some_and(|ending| ending == "svg") {
                let text = String::from_utf8(bytes).expect("is text");
                assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>") && text.contains("<text"));
            } else {
                let image = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("is a PNG");
                assert_eq!((image.info().width, image.info().height), SIZE);
            }
        }
        std::fs::remove_dir_all(&folder).expect("goes away");
    }
}
