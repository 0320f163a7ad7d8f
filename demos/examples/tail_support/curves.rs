//! The picture: for each scenario, the share of requests that took longer than so many milliseconds.

use std::error::Error;

use plotters::prelude::*;

use super::{Measured, Tail};

pub(crate) fn svg(stalled: &[f64], measured: &[Measured]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let page = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        page.fill(&WHITE)?;
        let panels = page.split_evenly((1, stalled.len()));
        for (panel, stalled) in panels.iter().zip(stalled) {
            let of_panel = measured.iter().filter(|measured| measured.stalled == *stalled);
            draw(panel, *stalled, of_panel)?;
        }
        page.present()?;
    }
    Ok(svg)
}

fn draw<'t>(
    panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    stalled: f64,
    measured: impl Iterator<Item = &'t Measured>,
) -> Result<(), Box<dyn Error>> {
    let title = format!("{:.0} % of the first provider's answers stall", stalled * 100.0);
    let mut chart = ChartBuilder::on(panel)
        .margin(12)
        .caption(title, ("sans-serif", 17))
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((10.0..3000.0).log_scale(), (0.0001..1.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("longer than (ms)")
        .y_desc("share of requests")
        .x_label_formatter(&|millis: &f64| format!("{millis:.0}"))
        .y_label_formatter(&|share: &f64| format!("{} %", share * 100.0))
        .light_line_style(WHITE)
        .draw()?;
    for (Measured { strategy, tail, .. }, color) in measured.zip(COLORS) {
        chart
            .draw_series(LineSeries::new(points(tail), color.stroke_width(2)))?
            .label(*strategy)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(3))
            });
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(GRID)
        .draw()?;
    Ok(())
}

/// From the share of requests that took longer, down to one in ten thousand.
fn points(tail: &Tail) -> impl Iterator<Item = (f64, f64)> {
    (0..=400).map(|step| {
        let longer = 10f64.powf(-f64::from(step) / 100.0);
        (tail.quantile(1.0 - longer).as_secs_f64() * 1000.0, longer)
    })
}

const SIZE: (u32, u32) = (1500, 480);
const GRID: RGBColor = RGBColor(200, 200, 200);

// Colors that are told apart also by the color-blind (Okabe and Ito).
const COLORS: [RGBColor; 5] = [
    RGBColor(150, 150, 150),
    RGBColor(230, 159, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
