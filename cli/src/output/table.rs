//! Tables for people: columns as wide as their widest cell, two spaces between, no lines.

use super::{Colour, Output, clean};

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        let text = clean(text.as_ref()).into_owned();
        Self {
            text: if text.is_empty() {
                "-".to_owned()
            } else {
                text
            },
            colour: None,
        }
    }
}

impl Cell {
    /// A cell in a colour.
    pub(crate) fn painted(colour: Option<Colour>, text: impl AsRef<str>) -> Self {
        Self {
            colour,
            ..Self::from(text)
        }
    }
}

/// Rows under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these column names.
    pub(crate) fn new(heading: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            heading: heading.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text.
    pub(crate) fn render(&self, output: &Output) -> String {
        let mut widths: Vec<usize> = self.heading.iter().map(|name| name.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut text = String::new();
        let heading = self.heading.iter().map(|name| Cell {
            text: (*name).to_owned(),
            colour: Some(Colour::Faint),
        });
        line(output, &widths, heading, &mut text);
        for row in &self.rows {
            line(output, &widths, row.iter().cloned(), &mut text);
        }
        text
    }
}

fn line(output: &Output, widths: &[usize], cells: impl Iterator<Item = Cell>, text: &mut String) {
    let mut pending = String::new();
    for (cell, width) in cells.zip(widths) {
        text.push_str(&pending);
        pending = " ".repeat(width.saturating_sub(cell.text.chars().count()) + 2);
        match cell.colour {
            Some(colour) => text.push_str(&output.paint(colour, &cell.text)),
            None => text.push_str(&cell.text),
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn columns_line_up_and_empty_cells_are_dashes() {
        let output = Output {
            format: Format::Table,
            colour: false,
            stdout_tty: false,
            stderr_tty: false,
        };
        let mut table = Table::new(["NAME", "STATE"]);
        table.row([
            Cell::from("web\u{1b}"),
            Cell::painted(Some(Colour::Good), "up"),
        ]);
        table.row(["a-longer-name".into(), "".into()]);
        assert_eq!(
            table.render(&output),
            "NAME           STATE\nweb            up\na-longer-name  -\n"
        );
        let coloured = table.render(&Output {
            colour: true,
            ..output
        });
        assert!(
            coloured.contains("web            \x1b[32mup\x1b[0m\n"),
            "{coloured:?}"
        );
    }
}
