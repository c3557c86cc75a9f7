//! A figure, its floor, its goal; the table and `bench.json`.

use std::path::Path;

use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which benchmark.
    pub bench: &'static str,
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The floor of the same run, where there is one.
    pub floor: Option<f64>,
    /// What the floor is.
    pub floor_is: &'static str,
    /// The goal, in words; empty: there is none.
    pub goal: String,
    /// Whether it was met.
    pub met: Option<bool>,
}

impl Figure {
    /// A figure without floor and goal.
    #[must_use]
    pub fn new(
        bench: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            bench,
            what: what.into(),
            value,
            unit,
            floor: None,
            floor_is: "",
            goal: String::new(),
            met: None,
        }
    }

    /// Beside a floor.
    #[must_use]
    pub fn floor(mut self, floor: f64, is: &'static str) -> Self {
        self.floor = Some(floor);
        self.floor_is = is;
        self
    }

    /// One that is only to be looked at.
    #[must_use]
    pub fn without_goal(mut self) -> Self {
        self.goal.clear();
        self.met = None;
        self
    }

    /// Must be at most so much.
    #[must_use]
    pub fn at_most(mut self, goal: f64) -> Self {
        self.goal = format!("≤ {}", number(goal));
        self.met = Some(self.value <= goal);
        self
    }

    /// Must be at least so much.
    #[must_use]
    pub fn at_least(mut self, goal: f64) -> Self {
        self.goal = format!("≥ {}", number(goal));
        self.met = Some(self.value >= goal);
        self
    }

    /// Must be at most so many times its floor.
    #[must_use]
    pub fn at_most_times(mut self, times: f64) -> Self {
        self.goal = format!("≤ {times} × floor");
        self.met = self.floor.map(|floor| self.value <= floor * times);
        self
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The table that people read.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut rows =
        vec![["BENCH", "FIGURE", "VALUE", "FLOOR", "RATIO", "GOAL", ""].map(str::to_owned)];
    for figure in figures {
        let floor = figure.floor.map(|floor| match figure.floor_is {
            "" => number(floor),
            is => format!("{} ({is})", number(floor)),
        });
        let ratio = figure
            .floor
            .filter(|floor| *floor > 0.0)
            .map(|floor| format!("{:.2}", figure.value / floor));
        rows.push([
            figure.bench.to_owned(),
            figure.what.clone(),
            format!("{} {}", number(figure.value), figure.unit),
            floor.unwrap_or_default(),
            ratio.unwrap_or_default(),
            figure.goal.clone(),
            figure
                .met
                .map_or("", |met| if met { "met" } else { "MISSED" })
                .to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..7)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &[String; 7]| -> String {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Writes them for programs.
///
/// # Panics
/// When the file cannot be written.
pub fn write(path: &Path, figures: &[Figure], build: &str, quick: bool) {
    let whole = serde_json::json!({
        "build": build,
        "quick": quick,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "load_at_the_end": crate::measuring::load(),
        "figures": figures,
    });
    let text = serde_json::to_string_pretty(&whole).expect("numbers and text");
    std::fs::write(path, text + "\n").expect("the file of figures");
}
