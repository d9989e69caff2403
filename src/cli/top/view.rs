//! Drawing of the screen. Every symbol has its meaning without colour.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline};

use super::model::{Model, Prompt};
use crate::cli::text::status::{blocked, peers, reads};
use crate::cli::text::{Align, Table, clip, count, rate, share, size};
use crate::control::status::{Cell, PieceMap, TorrentStatus};

/// Largest number of rows in the list of torrents, so that the rest fits on the screen.
const MAX_TORRENTS: u16 = 8;
/// Number of rows of the piece map.
const MAP_ROWS: u16 = 3;

/// The bottom line.
const KEYS: &str = "q quit  ? help  arrows select  p pause  o on demand  l limit down  u limit up";

/// The help window.
const HELP: &str = "\
up, down    select a torrent
tab         switch to the next mount
p           pause or resume the torrent
o           fetch the torrent on demand, or all of it
l, u        set the download limit, the upload limit
q           quit

pieces      # available   = partly available   + being fetched
            ~ read-ahead   > reader position   ! a read waits
            . missing   - skipped

peers       D we download from it   d we want data, it chokes us
            U we upload to it       u it wants data, we choke it
            I incoming   E encrypted   P uTP   S not answering";

/// Draws the screen.
pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) {
    let colours = Colours { on: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) };
    let area = frame.area();
    let torrents = (model.status.torrents.len() as u16).clamp(1, MAX_TORRENTS) + 2;
    let waits = model.selected().map_or(0, |torrent| blocked(&torrent.blocked_reads).len() as u16).min(2) * 2;
    let [head, rates, list, map, reads, connections, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(3),
        Constraint::Length(torrents),
        Constraint::Length(MAP_ROWS + 1),
        Constraint::Length(if waits == 0 { 0 } else { waits + 1 }),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(heading(model, usize::from(head.width)), head);
    draw_rates(model, colours, frame, rates);
    frame.render_widget(torrent_list(model, colours, list), list);
    if let Some(torrent) = model.selected() {
        draw_map(torrent, model.map.as_ref(), colours, frame, map);
        frame.render_widget(waiting(torrent, colours, reads), reads);
        let lines = peers(&torrent.peers, torrent.pieces).lines(usize::from(connections.width), "");
        let title = format!("{}, {}", count(torrent.peers.len(), "peer"), count(torrent.seeds, "seed"));
        frame.render_widget(section(&title, lines.join("\n").into()), connections);
    }
    frame.render_widget(footing(model, colours), foot);
    if model.help {
        let height = HELP.lines().count() as u16 + 2;
        let at = area.centered(Constraint::Max(66), Constraint::Max(height));
        frame.render_widget(Clear, at);
        frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title("torrentfs top")), at);
    }
}

/// Colours, unless switched off by NO_COLOR.
#[derive(Clone, Copy)]
struct Colours {
    on: bool,
}

impl Colours {
    fn of(self, colour: Color) -> Style {
        if self.on { Style::default().fg(colour) } else { Style::default() }
    }
}

/// Returns a section of the screen, with a title in its upper border.
fn section<'a>(title: &str, text: Text<'a>) -> Paragraph<'a> {
    Paragraph::new(text).block(Block::default().borders(Borders::TOP).title(title.to_owned()))
}

/// Returns the two lines at the top.
fn heading(model: &Model, columns: usize) -> Paragraph<'static> {
    let status = &model.status;
    let total = &status.total;
    let others = if model.has_others() { "  (tab: next mount)" } else { "" };
    let first = format!(
        "{}  {} of {} available, ratio {:.2}, {}{others}",
        status.mountpoint,
        size(total.have),
        size(total.size),
        total.ratio,
        count(total.peers, "peer")
    );
    let second = match &status.cache.fault {
        Some(fault) => format!("disk fault: {fault}"),
        None => format!("cache {} on disk; reads: {}", size(status.cache.disk), reads(&status.cache.reads)),
    };
    Paragraph::new(vec![
        Line::styled(clip(&first, columns), Style::default().add_modifier(Modifier::BOLD)),
        Line::raw(clip(&second, columns)),
    ])
}

/// Draws the graphs of the rates.
fn draw_rates(model: &Model, colours: Colours, frame: &mut Frame<'_>, area: Rect) {
    let [down, up] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(area);
    let limits = model.status.limits;
    let total = &model.status.total;
    for (area, label, now, limit, history, colour) in [
        (down, "down", total.download_rate, limits.download, &model.down, Color::Green),
        (up, "up", total.upload_rate, limits.upload, &model.up, Color::Blue),
    ] {
        let limit = limit.map_or(String::new(), |limit| format!(" (limit {})", rate(limit)));
        let title = format!("{label} {}{limit}", rate(now));
        let shown = history.len().saturating_sub(usize::from(area.width));
        let graph = Sparkline::default()
            .block(Block::default().borders(Borders::TOP).title(title))
            .data(history.iter().skip(shown))
            .style(colours.of(colour));
        frame.render_widget(graph, area);
    }
}

/// Returns the list of torrents.
fn torrent_list(model: &Model, colours: Colours, area: Rect) -> Paragraph<'static> {
    use Align::{Left, Right};
    let headings = [
        ("", Left),
        ("torrent", Left),
        ("state", Left),
        ("have", Right),
        ("size", Right),
        ("down", Right),
        ("up", Right),
        ("peers", Right),
    ];
    let mut table = Table::new(&headings, 1);
    for (at, torrent) in model.status.torrents.iter().enumerate() {
        table.row([
            if at == model.torrent { ">" } else { "" }.to_owned(),
            torrent.name.clone(),
            torrent.state.word().to_owned(),
            share(torrent.have, torrent.size),
            size(torrent.size),
            rate(torrent.download_rate),
            rate(torrent.upload_rate),
            torrent.peers.len().to_string(),
        ]);
    }
    let mut lines = table.lines(usize::from(area.width), "");
    // Scroll so that the selected torrent is visible.
    let rows = usize::from(area.height).saturating_sub(2).max(1);
    let first = (model.torrent + 1).saturating_sub(rows);
    let shown = lines.split_off(1).into_iter().enumerate().skip(first).take(rows);
    let mut text: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    text.extend(shown.map(|(at, line)| {
        let emphasis = if at == model.torrent { Modifier::BOLD } else { Modifier::empty() };
        Line::styled(line, colours.of(Color::Reset).add_modifier(emphasis))
    }));
    let queued = Some(model.status.total.queued).filter(|queued| *queued > 0);
    let queued = queued.map_or(String::new(), |queued| format!(", {queued} queued"));
    section(&format!("{}{queued}", count(model.status.torrents.len(), "torrent")), text.into())
}

/// Draws the piece map.
fn draw_map(torrent: &TorrentStatus, map: Option<&PieceMap>, colours: Colours, frame: &mut Frame<'_>, area: Rect) {
    let columns = usize::from(area.width);
    let cells = map.map_or(Vec::new(), |map| combine(&map.cells, columns * usize::from(MAP_ROWS)));
    let lines: Vec<Line<'_>> = cells
        .chunks(columns.max(1))
        .map(|row| {
            let symbols = row.iter().map(|cell| {
                let (symbol, colour) = symbol(cell);
                Span::styled(symbol, colours.of(colour))
            });
            Line::from(symbols.collect::<Vec<_>>())
        })
        .collect();
    let title =
        format!("pieces: {} of {}, {} each", torrent.pieces_had, torrent.pieces, size(torrent.piece_length.into()));
    frame.render_widget(section(&title, lines.into()), area);
}

/// Combines neighbouring cells until at most `room` are left.
fn combine(cells: &[Cell], room: usize) -> Vec<Cell> {
    let count = room.min(cells.len());
    let sum = |cells: &[Cell]| {
        cells.iter().fold(Cell::default(), |sum, cell| Cell {
            pieces: sum.pieces + cell.pieces,
            have: sum.have + cell.have,
            partial: sum.partial + cell.partial,
            skipped: sum.skipped + cell.skipped,
            window: sum.window + cell.window,
            reader: sum.reader || cell.reader,
            blocked: sum.blocked || cell.blocked,
        })
    };
    (0..count).map(|at| sum(&cells[at * cells.len() / count..(at + 1) * cells.len() / count])).collect()
}

/// Returns the symbol and colour for the most important property of a cell.
fn symbol(cell: &Cell) -> (&'static str, Color) {
    match cell {
        cell if cell.blocked => ("!", Color::Red),
        cell if cell.reader => (">", Color::Yellow),
        cell if cell.have == cell.pieces => ("#", Color::Green),
        cell if cell.partial > 0 => ("+", Color::Cyan),
        cell if cell.have > 0 => ("=", Color::Green),
        cell if cell.window > 0 => ("~", Color::Yellow),
        cell if cell.skipped == cell.pieces => ("-", Color::Reset),
        _ => (".", Color::Reset),
    }
}

/// Returns the list of waiting reads.
fn waiting(torrent: &TorrentStatus, colours: Colours, area: Rect) -> Paragraph<'static> {
    let columns = usize::from(area.width);
    let rows = usize::from(area.height).saturating_sub(1);
    let lines = blocked(&torrent.blocked_reads).into_iter().flat_map(|[read, awaited]| {
        [Line::styled(clip(&read, columns), colours.of(Color::Red)), Line::raw(clip(&format!("  {awaited}"), columns))]
    });
    let lines: Vec<Line<'_>> = lines.take(rows).collect();
    section(&count(torrent.blocked_reads.len(), "waiting read"), lines.into())
}

/// Returns the bottom line: a prompt, an error, or the keys.
fn footing(model: &Model, colours: Colours) -> Line<'static> {
    match (&model.prompt, &model.message) {
        (Some(Prompt { down, text }), _) => {
            let direction = if *down { "download" } else { "upload" };
            Line::raw(format!("maximum {direction} rate, such as 500KiB or 2MiB; 0 for no limit: {text}_"))
        }
        (None, Some(message)) => Line::styled(message.clone(), colours.of(Color::Red)),
        (None, None) => Line::raw(KEYS),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::status;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn shown(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(model, frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_fits_in_80_by_24() {
        let mut model = Model::new(2, status(&["alpha", "beta"]));
        let cell = |have, blocked| Cell { pieces: 2, have, blocked, ..Cell::default() };
        let cells = vec![cell(2, false), cell(1, false), cell(0, true), cell(0, false)];
        model.update(status(&["alpha", "beta"]), Some(PieceMap { pieces: 10, cells }));
        let screen = shown(&model, 80, 24);
        for part in [
            "/mnt/a  500 B of 0.98 KiB available",
            "tab: next mount",
            "down 10 B/s",
            "2 torrents",
            ">  alpha",
            "50.0 %",
            "pieces: 5 of 10, 100 B each",
            "#=!.",
            "1 waiting read",
            "waiting 1.5 s: alpha/film at 7 B",
            "no peer has it",
            "0 peers",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part}: {screen}");
        }
        model.help = true;
        assert!(shown(&model, 80, 24).contains("a read waits"));
        // Every size can be drawn.
        for (width, height) in [(1, 1), (10, 3), (20, 8), (300, 100)] {
            shown(&model, width, height);
        }
        shown(&Model::new(1, status(&[])), 80, 24);
    }

    #[test]
    fn the_list_scrolls_with_the_selection() {
        let names: Vec<String> = (0..30).map(|n| format!("torrent-{n:02}")).collect();
        let mut model = Model::new(1, status(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        model.torrent = 29;
        let screen = shown(&model, 80, 24);
        assert!(screen.contains(">  torrent-29") && !screen.contains("torrent-00"), "{screen}");
    }

    #[test]
    fn cells_are_combined_without_loss() {
        let cells: Vec<Cell> = (0..100).map(|n| Cell { pieces: 3, have: n % 4, ..Cell::default() }).collect();
        for room in [1, 7, 99, 100, 500] {
            let combined = combine(&cells, room);
            assert_eq!(combined.len(), room.min(100));
            assert_eq!(combined.iter().map(|cell| cell.pieces).sum::<u32>(), 300);
            assert_eq!(combined.iter().map(|cell| cell.have).sum::<u32>(), 150);
        }
        assert!(combine(&[], 5).is_empty());
    }
}
