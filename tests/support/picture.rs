//! Pictures of a terminal: a screen with its colours, drawn as the window of a terminal in SVG.
//!
//! A picture contains the text of its screen as its description, which screen readers read out, and which
//! [`text_of`] finds again.

use std::fmt::Write;

/// Width of a character, in pixels.
const CELL_WIDTH: f64 = 8.4;
/// Height of a line, in pixels.
const LINE_HEIGHT: f64 = 19.0;
/// Size of the font, in pixels: its characters are about [`CELL_WIDTH`] wide, and are stretched to exactly that.
const FONT_SIZE: f64 = 14.0;
/// Distance from the top of a line to its baseline, in pixels.
const BASELINE: f64 = 14.0;
/// Space between the text and the edges of the window, in pixels.
const PADDING: f64 = 16.0;
/// Height of the title bar, in pixels.
const TITLE_HEIGHT: f64 = 34.0;

/// Colours of the window, chosen to look well on a light and on a dark page.
const BACKGROUND: &str = "#161b22";
const BORDER: &str = "#3d444d";
const FOREGROUND: &str = "#d1d7e0";
/// The terminal's eight colours: black, red, green, yellow, blue, magenta, cyan, white.
const PALETTE: [&str; 8] = ["#656c76", "#ff7b72", "#56d364", "#e3b341", "#6cb6ff", "#dcbdfb", "#76e3ea", "#f0f6fc"];

#[derive(Clone, Copy, PartialEq)]
struct Style {
    /// Index into [`PALETTE`]; `None` for the default colour.
    colour: Option<usize>,
    bold: bool,
}

#[derive(Clone, Copy)]
struct Cell {
    character: char,
    style: Style,
}

/// A terminal's screen.
pub struct Screen {
    rows: Vec<Vec<Cell>>,
}

impl Screen {
    /// Parses the output of `tmux capture-pane -e`. Leaves out empty lines at the end.
    pub fn parse(captured: &str) -> Self {
        let mut style = Style { colour: None, bold: false };
        let mut rows = Vec::new();
        for line in captured.lines() {
            let (mut row, mut characters) = (Vec::new(), line.chars());
            while let Some(character) = characters.next() {
                if character != '\u{1b}' {
                    row.push(Cell { character, style });
                    continue;
                }
                let sequence: String = characters.by_ref().take_while(|character| *character != 'm').collect();
                style.apply(sequence.strip_prefix('[').expect("tmux writes no other escape sequences"));
            }
            while row.last().is_some_and(|cell| cell.character == ' ') {
                row.pop();
            }
            rows.push(row);
        }
        while rows.last().is_some_and(Vec::is_empty) {
            rows.pop();
        }
        Self { rows }
    }

    /// Replaces every occurrence of a text.
    pub fn replace(&mut self, from: &str, to: &str) {
        let from: Vec<char> = from.chars().collect();
        for row in &mut self.rows {
            let matches = |row: &[Cell]| row.iter().map(|cell| cell.character).eq(from.iter().copied());
            while let Some(at) = row.windows(from.len()).position(matches) {
                let style = row[at].style;
                row.splice(at..at + from.len(), to.chars().map(|character| Cell { character, style }));
            }
        }
    }

    /// Returns the text of the screen.
    pub fn text(&self) -> String {
        self.rows.iter().map(|row| row.iter().map(|cell| cell.character).chain(['\n']).collect::<String>()).collect()
    }

    /// Draws the screen as a window with a title, `min_columns` characters wide or more.
    pub fn to_svg(&self, title: &str, min_columns: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(min_columns);
        let width = columns as f64 * CELL_WIDTH + 2.0 * PADDING;
        let height = TITLE_HEIGHT + self.rows.len() as f64 * LINE_HEIGHT + PADDING;
        let mut svg = String::new();
        let title = escape(title);
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n<title>{title}</title>\n<desc>{}</desc>",
            escape(&self.text())
        )
        .unwrap();
        svg.push_str("<style>\n");
        writeln!(
            svg,
            "text {{ font: {FONT_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', \
             'Liberation Mono', monospace; fill: {FOREGROUND}; white-space: pre; }}\n.b {{ font-weight: bold; }}\n.s {{ shape-rendering: crispEdges; }}"
        )
        .unwrap();
        for (number, colour) in PALETTE.iter().enumerate() {
            if self.rows.iter().flatten().any(|cell| cell.style.colour == Some(number)) {
                writeln!(svg, ".c{number} {{ fill: {colour}; }}").unwrap();
            }
        }
        svg.push_str("</style>\n");
        writeln!(
            svg,
            "<rect x=\".5\" y=\".5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"9\" fill=\"{BACKGROUND}\" stroke=\"{BORDER}\"/>",
            width - 1.0,
            height - 1.0
        )
        .unwrap();
        for (number, colour) in ["#ff5f57", "#febc2e", "#28c840"].iter().enumerate() {
            let x = PADDING + 5.0 + 18.0 * number as f64;
            writeln!(svg, "<circle cx=\"{x:.0}\" cy=\"17\" r=\"5.5\" fill=\"{colour}\"/>").unwrap();
        }
        writeln!(svg, "<text x=\"{:.0}\" y=\"22\" text-anchor=\"middle\" opacity=\".7\">{title}</text>", width / 2.0)
            .unwrap();
        for (number, row) in self.rows.iter().enumerate() {
            draw(&mut svg, row, TITLE_HEIGHT + number as f64 * LINE_HEIGHT);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl Style {
    /// Applies the parameters of a "select graphic rendition" sequence.
    fn apply(&mut self, parameters: &str) {
        let mut codes = parameters.split(';').map(|code| code.parse::<usize>().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self { colour: None, bold: false },
                1 => self.bold = true,
                22 => self.bold = false,
                30..=37 => self.colour = Some(code - 30),
                90..=97 => self.colour = Some(code - 90),
                // A colour by its number; those beyond the palette are drawn in the default colour.
                38 => {
                    self.colour = codes.nth(1).map(|colour| colour % 256).filter(|colour| *colour < 16).map(|c| c % 8)
                }
                39 => self.colour = None,
                _ => {}
            }
        }
    }

    fn class(self) -> String {
        let colour = self.colour.map(|colour| format!("c{colour}"));
        let bold = self.bold.then(|| "b".to_owned());
        let classes: Vec<String> = colour.into_iter().chain(bold).collect();
        if classes.is_empty() { String::new() } else { format!(" class=\"{}\"", classes.join(" ")) }
    }

    fn fill(self) -> &'static str {
        self.colour.map_or(FOREGROUND, |colour| PALETTE[colour])
    }
}

/// Draws a row whose top is at `y`. Lines and bars are drawn as shapes, because fonts leave gaps between them.
fn draw(svg: &mut String, row: &[Cell], y: f64) {
    let mut at = 0;
    while at < row.len() {
        let Cell { character, style } = row[at];
        let alike = |cell: &&Cell| cell.style == style && shape(cell.character) == shape(character);
        let run = &row[at..at + row[at..].iter().take_while(alike).count()];
        let (x, width) = (PADDING + at as f64 * CELL_WIDTH, run.len() as f64 * CELL_WIDTH);
        match shape(character) {
            Shape::Bar(eighths) => {
                let height = LINE_HEIGHT * f64::from(eighths) / 8.0;
                let top = y + LINE_HEIGHT - height;
                let fill = style.fill();
                writeln!(
                    svg,
                    "<rect class=\"s\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>"
                )
                .unwrap();
            }
            Shape::Line => {
                let middle = y + LINE_HEIGHT / 2.0;
                writeln!(
                    svg,
                    "<rect class=\"s\" x=\"{x:.1}\" y=\"{middle:.1}\" width=\"{width:.1}\" height=\"1\" fill=\"{BORDER}\"/>"
                )
                .unwrap();
            }
            Shape::Text => {
                let text: String = run.iter().map(|cell| cell.character).collect();
                if !text.trim().is_empty() {
                    writeln!(
                        svg,
                        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{width:.1}\" xml:space=\"preserve\"{}>{}</text>",
                        y + BASELINE,
                        style.class(),
                        escape(&text)
                    )
                    .unwrap();
                }
            }
        }
        at += run.len();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// A bar from the bottom of the cell, in eighths of its height.
    Bar(u8),
    /// A horizontal line.
    Line,
    Text,
}

fn shape(character: char) -> Shape {
    match character {
        '▁'..='█' => Shape::Bar((character as u32 - '▁' as u32 + 1) as u8),
        '─' => Shape::Line,
        _ => Shape::Text,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns the text of the screen in a picture.
pub fn text_of(svg: &str) -> String {
    let text = svg.split_once("<desc>").and_then(|(_, rest)| rest.split_once("</desc>")).expect("a picture of ours").0;
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// Removes from a screen's text all that varies from run to run: command lines, numbers, their units, rates, bars, maps
/// of pieces, flags of peers, and lines that say the same again. What is left are the words, which must not go stale.
pub fn mask(text: &str) -> String {
    let varies = |token: &&str| {
        let units = ["B", "KiB", "MiB", "GiB", "B/s", "KiB/s", "MiB/s", "GiB/s", "%", "-", "s"];
        let token = token.trim_matches(|c: char| ",.:()".contains(c));
        token.chars().any(|c| c.is_ascii_digit())
            || token.ends_with('…')
            || units.contains(&token)
            || token.chars().all(|c| "DdUuIEPS".contains(c))
            || token.chars().all(|c| "#=+~>!.-".contains(c))
            || token.chars().all(|c| matches!(c, '▁'..='█' | '─'))
    };
    let masked = |line: &str| {
        // A title stands between two lines, without a space.
        let line = line.replace('─', " ");
        line.split_whitespace().filter(|token| !varies(token)).collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("$ ")).map(masked) {
        let line = line.replace(" and more", "");
        if !line.is_empty() && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("\n")
}
