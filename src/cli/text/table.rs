//! Tables with aligned columns, by the width of characters in a terminal.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::util::is_hidden;

/// Columns of space between two cells.
const GAP: usize = 2;

/// Alignment of a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Align {
    Left,
    Right,
}

/// Rows under a heading. One column is shortened if the table would be too wide.
pub(in crate::cli) struct Table {
    columns: Vec<Align>,
    /// Index of the column that is shortened.
    flexible: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Makes an empty table. `headings` come with the alignments of their columns; the column `flexible` is shortened if the
    /// table is too wide.
    pub fn new(headings: &[(&str, Align)], flexible: usize) -> Self {
        let rows = vec![headings.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
        Self { columns: headings.iter().map(|(_, align)| *align).collect(), flexible, rows }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns the lines of the table, at most `columns` columns wide and each after `indent`.
    pub fn lines(&self, columns: usize, indent: &str) -> Vec<String> {
        let cell = |row: &Vec<String>, at: usize| row.get(at).map_or(0, |cell| width(cell));
        let mut widths: Vec<usize> =
            (0..self.columns.len()).map(|at| self.rows.iter().map(|row| cell(row, at)).max().unwrap_or(0)).collect();
        let all = width(indent) + widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        if let Some(flexible) = widths.get_mut(self.flexible) {
            *flexible = flexible.saturating_sub(all.saturating_sub(columns)).max(8);
        }
        let line = |row: &Vec<String>| {
            let mut line = indent.to_owned();
            for (at, (cell, (align, wide))) in row.iter().zip(self.columns.iter().zip(&widths)).enumerate() {
                let cell = clip(cell, *wide);
                let pad = " ".repeat(wide - width(&cell));
                line += if at == 0 { "" } else { "  " };
                line += &if *align == Align::Left { format!("{cell}{pad}") } else { format!("{pad}{cell}") };
            }
            clip(line.trim_end(), columns)
        };
        self.rows.iter().map(line).collect()
    }
}

/// Returns the width of a text in columns.
pub(in crate::cli) fn width(text: &str) -> usize {
    text.width()
}

/// Shortens a text to at most `columns` columns, with an ellipsis at the end. Hidden characters become spaces.
pub(in crate::cli) fn clip(text: &str, columns: usize) -> String {
    let text: String = text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    if text.width() <= columns {
        return text;
    }
    let (mut clipped, mut used) = (String::new(), 0);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide + 1 > columns {
            break;
        }
        used += wide;
        clipped.push(c);
    }
    if columns > 0 {
        clipped.push('…');
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_fit() {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right)], 0);
        table.row(["映画 film with a long name".to_owned(), "1.5 GiB".to_owned()]);
        table.row(["b\t\u{202e}c".to_owned(), "7 B".to_owned()]);
        assert_eq!(
            table.lines(24, "  "),
            ["  name              size", "  映画 film wi…  1.5 GiB", "  b  c               7 B"]
        );
        assert!(table.lines(80, "").iter().all(|line| width(line) <= 80));
    }
}
