//! What does a report draw? Four charts as SVG, without fonts, scripts or styles of their own.
//!
//! Colours are placeholders that the page's style sheet replaces, so that one drawing serves paper, light and
//! dark. What a chart shows is in its title and description, for whoever does not see it.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::history::Window;
use super::text::{percent, shown_time};
use super::{Courses, count_f64, score, whole};

/// One drawing.
pub(super) struct Chart {
    /// What it is.
    pub(super) title: &'static str,
    /// What it shows, in words.
    pub(super) says: String,
    /// What the colours mean: the class of each in the style sheet, and the name.
    pub(super) legend: Vec<(usize, String)>,
    /// The drawing, as an `svg` element without title.
    pub(super) svg: String,
}

/// All that there is to draw. A chart with nothing in it is left out.
pub(super) fn all(window: Window, courses: &Courses) -> Vec<Chart> {
    [
        decisions(window, courses),
        grants(courses),
        secretless(window, courses),
        rotations(window, courses),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Trouble = DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>;
type Drawn = Result<(), Trouble>;

const SIZE: (u32, u32) = (720, 220);

/// Text and lines, and the colours of series: see the style sheet.
pub(super) const INK: RGBColor = RGBColor(1, 1, 1);
pub(super) const GRID: RGBColor = RGBColor(2, 2, 2);
pub(super) const SERIES: [RGBColor; 6] = [
    RGBColor(11, 0, 0),
    RGBColor(12, 0, 0),
    RGBColor(13, 0, 0),
    RGBColor(14, 0, 0),
    RGBColor(15, 0, 0),
    RGBColor(16, 0, 0),
];

fn decisions(window: Window, courses: &Courses) -> Option<Chart> {
    let (allowed, denied) = (&courses.allowed, &courses.denied);
    let totals = (allowed.iter().sum::<f64>(), denied.iter().sum::<f64>());
    let most = allowed
        .iter()
        .zip(denied)
        .map(|(allowed, denied)| allowed + denied);
    let most = most.fold(0.0, f64::max);
    (most > 0.0).then_some(())?;
    let svg = draw(SIZE, |area| {
        let mut chart = over_time(area, window, 0.0, most * 1.05)?;
        let bars = allowed.iter().zip(denied).zip(0_u32..);
        for ((allowed, denied), step) in bars {
            let (left, right) = (f64::from(step) + 0.1, f64::from(step) + 0.9);
            let tops = [(0.0, *allowed, 0), (*allowed, allowed + denied, 1)];
            let tops = tops.into_iter().filter(|(from, to, _)| to > from);
            chart.draw_series(tops.map(|(from, to, colour)| {
                Rectangle::new([(left, to), (right, from)], SERIES[colour].filled())
            }))?;
        }
        Ok(())
    })?;
    Some(Chart {
        title: "Decisions over time",
        says: format!(
            "{} allowed and {} denied in the window. What was counted in a gap stands after it.",
            whole(totals.0),
            whole(totals.1)
        ),
        legend: vec![(0, "allowed".into()), (1, "denied".into())],
        svg,
    })
}

fn rotations(window: Window, courses: &Courses) -> Option<Chart> {
    let most = courses.rotations.iter().copied().fold(0.0, f64::max);
    (most > 0.0).then_some(())?;
    let svg = draw(SIZE, |area| {
        let mut chart = over_time(area, window, 0.0, most * 1.05)?;
        let bars = courses
            .rotations
            .iter()
            .zip(0_u32..)
            .filter(|(count, _)| **count > 0.0);
        chart.draw_series(bars.map(|(count, step)| {
            let (left, right) = (f64::from(step) + 0.1, f64::from(step) + 0.9);
            Rectangle::new([(left, *count), (right, 0.0)], SERIES[2].filled())
        }))?;
        Ok(())
    })?;
    let total = whole(courses.rotations.iter().sum());
    Some(Chart {
        title: "Certificates renewed over time",
        says: format!("{total} certificates put in force after the first of each sidecar."),
        legend: vec![(2, "renewed".into())],
        svg,
    })
}

fn secretless(window: Window, courses: &Courses) -> Option<Chart> {
    // The busiest, as many as there are colours that can be told apart.
    let mut services: Vec<_> = courses.secretless.iter().collect();
    services.sort_by(|(_, (one, _)), (_, (other, _))| {
        let total = |requests: &[f64]| requests.iter().sum::<f64>();
        total(other).total_cmp(&total(one))
    });
    services.truncate(SERIES.len());
    (!services.is_empty()).then_some(())?;
    let lines = services.iter().map(|(_, (requests, with))| {
        let points = requests.iter().zip(with).zip(0_u32..);
        points
            .filter(|((requests, _), _)| **requests > 0.0)
            .map(|((requests, with), step)| {
                (f64::from(step) + 0.5, 100.0 * score(*requests, *with))
            })
            .collect::<Vec<_>>()
    });
    let lines: Vec<_> = lines.collect();
    // Most of the axis for where the lines are: nearly all services are above 90.
    let least = lines
        .iter()
        .flatten()
        .map(|(_, score)| *score)
        .fold(100.0, f64::min);
    let floors = [99.0, 95.0, 90.0, 50.0, 0.0];
    let floor = floors
        .into_iter()
        .find(|floor| *floor <= least)
        .unwrap_or(0.0);
    let svg = draw(SIZE, |area| {
        let mut chart = over_time(area, window, floor, 100.0)?;
        for (colour, points) in lines.into_iter().enumerate() {
            let style = SERIES[colour].stroke_width(2);
            let dots = points
                .iter()
                .map(|point| Circle::new(*point, 2, SERIES[colour].filled()));
            chart.draw_series(dots.collect::<Vec<_>>())?;
            // A line over steps without requests would claim something.
            for run in points.chunk_by(|(one, _), (next, _)| next - one < 1.5) {
                chart.draw_series(LineSeries::new(run.to_vec(), style))?;
            }
        }
        Ok(())
    })?;
    let says: Vec<_> = services
        .iter()
        .map(|(name, (requests, with))| {
            let score = score(requests.iter().sum(), with.iter().sum());
            format!("{name} {}", percent(score))
        })
        .collect();
    let names = services.iter().map(|(name, _)| (*name).clone());
    Some(Chart {
        title: "Secretless score over time, in percent",
        says: format!("Requests without a standing secret: {}.", says.join(", ")),
        legend: names.enumerate().collect(),
        svg,
    })
}

fn grants(courses: &Courses) -> Option<Chart> {
    let grants = &courses.grants[..courses.grants.len().min(MOST_BARS)];
    let most = grants.first()?.1;
    let (rows, height) = (u32::try_from(grants.len()).ok()?, 22);
    let (width, names) = (SIZE.0, 230);
    let svg = draw((width, rows * height + 8), |area| {
        let text = |anchor| {
            let style = TextStyle::from(("sans-serif", 12).into_font()).color(&INK);
            style.pos(anchor)
        };
        let at = |x: f64| pixels(f64::from(names) + 8.0 + x * f64::from(width - names - 80));
        for ((name, count), row) in grants.iter().zip(0_i32..) {
            let top = 4 + row * 22;
            let middle = top + 11;
            let (end, start) = (
                Pos::new(HPos::Right, VPos::Center),
                Pos::new(HPos::Left, VPos::Center),
            );
            area.draw(&Text::new(
                cut(name),
                (pixels(f64::from(names)), middle),
                text(end),
            ))?;
            let bar = [
                (at(0.0), top + 3),
                (at(count / most).max(at(0.0) + 1), top + 19),
            ];
            area.draw(&Rectangle::new(bar, SERIES[0].filled()))?;
            let number = (at(count / most) + 6, middle);
            area.draw(&Text::new(whole(*count).to_string(), number, text(start)))?;
        }
        Ok(())
    })?;
    let more = courses.grants.len() - grants.len();
    let says = match more {
        0 => "Requests and connections that each grant allowed.".to_owned(),
        more => format!("The {MOST_BARS} grants that allowed most; {more} more are in the table."),
    };
    Some(Chart {
        title: "Grants in use",
        says,
        legend: Vec::new(),
        svg,
    })
}

const MOST_BARS: usize = 20;

/// Long names do not fit beside the bars.
fn cut(name: &str) -> String {
    match name.char_indices().nth(32) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

/// Axes for the steps of the window, and from `least` to `most`.
fn over_time<'a, 'b>(
    area: &'b Area<'a>,
    window: Window,
    least: f64,
    most: f64,
) -> Result<Plane<'a, 'b>, Trouble> {
    let steps = count_f64(window.steps as u64);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..steps, least..most)?;
    let short = window.length().as_secs() < 3 * 86_400;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(6)
        .y_labels(5)
        .label_style(("sans-serif", 12).into_font().color(&INK))
        .x_label_formatter(&|step| {
            let into =
                step / steps * count_f64(window.length().as_millis().try_into().unwrap_or(0));
            let time = window.start() + i64::try_from(whole(into)).unwrap_or(0);
            let shown = shown_time(time / 1000);
            match (short, shown.split_once(' ')) {
                (true, Some((_, clock))) => clock.to_owned(),
                (true, None) => "00:00Z".to_owned(),
                (false, Some((day, _))) => day.to_owned(),
                (false, None) => shown,
            }
        })
        .y_label_formatter(&|value| match most - least > 4.0 {
            true => whole(*value).to_string(),
            false => format!("{value:.1}"),
        })
        .draw()?;
    Ok(chart)
}

/// The drawing; none if it cannot be drawn, which is no reason to go without the tables.
fn draw(size: (u32, u32), with: impl FnOnce(&Area<'_>) -> Drawn) -> Option<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        with(&area).and_then(|()| area.present()).ok()?;
    }
    Some(svg)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a place on a small drawing"
)]
fn pixels(place: f64) -> i32 {
    place.round() as i32
}
