//! An outage as one picture: who served each request, how the providers stood, and the fallback rate.

use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use reqwest_failover::{Event, Snapshot, State};

/// What was seen of a chain, for a picture of it.
pub(crate) struct Timeline {
    names: Vec<String>,
    /// The shares of requests at which the fallback rate is high, and normal again.
    limits: (f64, f64),
    phases: Vec<(f64, &'static str)>,
    /// Who served each request: a place among `names`.
    served: Vec<(f64, Option<usize>)>,
    probes: Vec<(f64, usize)>,
    looks: Vec<Look>,
}

/// How things stood at one moment.
struct Look {
    at: f64,
    /// In the order of `names`.
    states: Vec<Band>,
    ratio: Option<f64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Band {
    Closed,
    CoolingDown,
    Open,
    Isolated,
}

impl Timeline {
    /// Of a chain with these providers, the first one first.
    pub(crate) fn of<const N: usize>(names: [&str; N]) -> Self {
        Self {
            names: names.map(str::to_owned).to_vec(),
            limits: (0.10, 0.05),
            phases: Vec::new(),
            served: Vec::new(),
            probes: Vec::new(),
            looks: Vec::new(),
        }
    }

    /// Another phase of the story begins.
    pub(crate) fn begin(&mut self, phase: &'static str, at: Duration) {
        self.phases.push((at.as_secs_f64(), phase));
    }

    /// Hears an event of the chain.
    pub(crate) fn hear(&mut self, event: &Event<'_>, at: Duration) {
        let at = at.as_secs_f64();
        match event {
            Event::Finished { report, .. } => {
                self.served.push((at, report.served_by().and_then(|name| self.place(name))));
            }
            Event::BreakerProbing { provider, .. } => {
                self.probes.extend(self.place(provider).map(|place| (at, place)));
            }
            _ => {}
        }
    }

    /// Looks at how things stand.
    pub(crate) fn look(&mut self, snapshot: &Snapshot, at: Duration) {
        let state = |name: &String| {
            let found = snapshot.providers().iter().find(|provider| provider.name() == *name);
            match found.map(|provider| provider.state()) {
                Some(State::CoolingDown { .. }) => Band::CoolingDown,
                Some(State::Open { .. } | State::Probing) => Band::Open,
                Some(State::Isolated) => Band::Isolated,
                _ => Band::Closed,
            }
        };
        let states = self.names.iter().map(state).collect();
        self.looks.push(Look { at: at.as_secs_f64(), states, ratio: snapshot.fallback_ratio() });
    }

    /// The picture.
    pub(crate) fn svg(&self) -> Result<String, Box<dyn Error>> {
        let mut svg = String::new();
        {
            let page = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            page.fill(&WHITE)?;
            let title = ("sans-serif", 26).into_font().style(FontStyle::Bold).color(&INK);
            page.draw_text("An outage, and who served meanwhile", &title, (MARGIN, 16))?;
            self.draw_served(&page)?;
            self.draw_states(&page)?;
            self.draw_rate(&page)?;
            page.present()?;
        }
        Ok(svg)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    fn end(&self) -> f64 {
        let last = self.served.last().map_or(0.0, |served| served.0);
        last.max(self.looks.last().map_or(0.0, |look| look.at)).max(1.0)
    }

    fn draw_served(&self, page: &Page<'_>) -> Result<(), Box<dyn Error>> {
        let lanes: Vec<&str> = self.names.iter().map(String::as_str).chain(["unknown"]).collect();
        let mut panel = self.panel(
            page,
            "Who served each request: one stroke for each",
            60..310,
            lanes.len() as f64,
        )?;
        self.name_lanes(page, &panel, &lanes)?;
        let none = lanes.len() - 1;
        panel.draw_series(self.served.iter().map(|(at, place)| {
            let lane = place.unwrap_or(none);
            let color = if lane == none { NONE } else { PROVIDERS[lane % PROVIDERS.len()] };
            let (top, bottom) = lane_edges(lanes.len(), lane, 0.22);
            PathElement::new(vec![(*at, top), (*at, bottom)], color.stroke_width(2))
        }))?;
        for (at, phase) in &self.phases {
            let (x, y) = panel.backend_coord(&(*at, lanes.len() as f64));
            page.draw_text(phase, &small().color(&INK), (x + 2, y - 18))?;
        }
        Ok(())
    }

    fn draw_states(&self, page: &Page<'_>) -> Result<(), Box<dyn Error>> {
        let lanes: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let mut panel = self.panel(page, "State of each provider", 320..480, lanes.len() as f64)?;
        self.name_lanes(page, &panel, &lanes)?;
        for lane in 0..lanes.len() {
            let edges = lane_edges(lanes.len(), lane, 0.18);
            panel.draw_series(self.bands(lane).into_iter().map(|(band, from, to)| {
                Rectangle::new([(from, edges.0), (to, edges.1)], band.color().filled())
            }))?;
        }
        panel.draw_series(self.probes.iter().map(|(at, lane)| {
            let (top, bottom) = lane_edges(lanes.len(), *lane, 0.18);
            TriangleMarker::new((*at, (top + bottom) / 2.0), 6, INK.filled())
        }))?;

        // The legend, in line with the panel's title.
        let mut x = 330;
        let seen = |band: &Band| self.looks.iter().any(|look| look.states.contains(band));
        let bands = [Band::Closed, Band::CoolingDown, Band::Open, Band::Isolated];
        for band in bands.into_iter().filter(seen) {
            page.draw(&Rectangle::new([(x, 329), (x + 18, 343)], band.color().filled()))?;
            page.draw_text(band.name(), &small().color(&INK), (x + 24, 329))?;
            x += 54 + 8 * band.name().len() as i32;
        }
        page.draw(&TriangleMarker::new((x + 6, 338), 6, INK.filled()))?;
        page.draw_text("a probe is sent", &small().color(&INK), (x + 20, 329))?;
        Ok(())
    }

    fn draw_rate(&self, page: &Page<'_>) -> Result<(), Box<dyn Error>> {
        let ratios = self.looks.iter().filter_map(|look| Some((look.at, look.ratio? * 100.0)));
        let ratios: Vec<_> = ratios.collect();
        let highest = ratios.iter().map(|(_, ratio)| *ratio).fold(20.0, f64::max);
        let title = "Fallback rate: share of requests that the first provider did not serve";
        let mut panel = self.panel(page, title, 490..750, (highest / 10.0).ceil() * 10.0)?;
        panel
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .label_style(small().color(&INK))
            .axis_desc_style(small().color(&INK))
            .x_desc("seconds since the start")
            .x_labels(16)
            .y_labels(6)
            .x_label_formatter(&|at| format!("{at:.0}"))
            .y_label_formatter(&|percent| format!("{percent:.0} %"))
            .draw()?;
        let (high, normal) = (self.limits.0 * 100.0, self.limits.1 * 100.0);
        for (limit, color) in [(high, OPEN), (normal, CLOSED)] {
            let line = [(0.0, limit), (self.end(), limit)];
            panel.draw_series(DashedLineSeries::new(line, 6, 4, color.stroke_width(2)))?;
        }
        panel.draw_series(LineSeries::new(ratios, INK.stroke_width(2)))?;

        let mut x = 680;
        for (name, color) in [
            (format!("high above {high:.0} %"), OPEN),
            (format!("normal below {normal:.0} %"), CLOSED),
        ] {
            let line = vec![(x, 506), (x + 24, 506)];
            page.draw(&PathElement::new(line, color.stroke_width(2)))?;
            page.draw_text(&name, &small().color(&INK), (x + 30, 499))?;
            x += 170;
        }
        Ok(())
    }

    /// One part of the picture, with the phases' beginnings in it; `rows` are its pixels.
    fn panel<'a>(
        &self,
        page: &Page<'a>,
        title: &str,
        rows: Range<i32>,
        highest: f64,
    ) -> Result<Panel<'a>, Box<dyn Error>> {
        let (width, _) = page.dim_in_pixel();
        let part = page.clone().shrink((0, rows.start), (width, (rows.end - rows.start) as u32));
        let bold = ("sans-serif", 17).into_font().style(FontStyle::Bold).color(&INK);
        page.draw_text(title, &bold, (MARGIN, rows.start + 8))?;
        let mut panel = ChartBuilder::on(&part)
            .margin_top(if rows.start < 100 { 56 } else { 34 })
            .margin_bottom(6)
            .margin_right(MARGIN)
            .set_label_area_size(LabelAreaPosition::Left, 110)
            .set_label_area_size(LabelAreaPosition::Bottom, if rows.end > 700 { 48 } else { 0 })
            .build_cartesian_2d(0.0..self.end(), 0.0..highest)?;
        let ends = self.phases.iter().skip(1).map(|(at, _)| *at).chain([self.end()]);
        for (at, ((from, _), to)) in self.phases.iter().zip(ends).enumerate() {
            let shade = if at % 2 == 0 { SHADE } else { WHITE };
            let area = Rectangle::new([(*from, 0.0), (to, highest)], shade.filled());
            panel.draw_series([area])?;
        }
        let (left, right) =
            (panel.backend_coord(&(0.0, highest)), panel.backend_coord(&(self.end(), 0.0)));
        page.draw(&Rectangle::new([left, right], GRID))?;
        Ok(panel)
    }

    /// Writes the lanes' names to the left of a panel.
    fn name_lanes(
        &self,
        page: &Page<'_>,
        panel: &Panel<'_>,
        lanes: &[&str],
    ) -> Result<(), Box<dyn Error>> {
        let style = small().color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
        for (lane, name) in lanes.iter().enumerate() {
            let (top, bottom) = lane_edges(lanes.len(), lane, 0.0);
            let (x, y) = panel.backend_coord(&(0.0, (top + bottom) / 2.0));
            page.draw_text(name, &style, (x - 8, y))?;
        }
        Ok(())
    }

    /// A provider's states in a row, each with its beginning and its end.
    fn bands(&self, lane: usize) -> Vec<(Band, f64, f64)> {
        let mut bands: Vec<(Band, f64, f64)> = Vec::new();
        for look in &self.looks {
            match bands.last_mut() {
                Some((band, _, to)) if *band == look.states[lane] => *to = look.at,
                last => {
                    if let Some((_, _, to)) = last {
                        *to = look.at;
                    }
                    bands.push((look.states[lane], look.at, look.at));
                }
            }
        }
        bands
    }
}

impl Band {
    fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::CoolingDown => "cooling down",
            Self::Open => "open",
            Self::Isolated => "isolated",
        }
    }

    fn color(self) -> RGBColor {
        match self {
            Self::Closed => CLOSED,
            Self::CoolingDown => COOLING,
            Self::Open => OPEN,
            Self::Isolated => ISOLATED,
        }
    }
}

type Page<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Panel<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const SIZE: (u32, u32) = (1100, 760);
const MARGIN: i32 = 24;

// Colors that are told apart also by the color-blind (Okabe and Ito).
const CLOSED: RGBColor = RGBColor(0, 158, 115);
const COOLING: RGBColor = RGBColor(86, 180, 233);
const OPEN: RGBColor = RGBColor(213, 94, 0);
const ISOLATED: RGBColor = RGBColor(150, 150, 150);
const PROVIDERS: [RGBColor; 3] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(204, 121, 167)];
const NONE: RGBColor = RGBColor(200, 0, 0);
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(200, 200, 200);
const SHADE: RGBColor = RGBColor(244, 244, 244);

fn small() -> FontDesc<'static> {
    ("sans-serif", 15).into_font()
}

/// The upper and the lower edge of a lane, the first one on top, with a gap on either side.
fn lane_edges(lanes: usize, lane: usize, gap: f64) -> (f64, f64) {
    let top = (lanes - lane) as f64;
    (top - gap, top - 1.0 + gap)
}
