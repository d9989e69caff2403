//! Drawing. Every sign means something without its colour.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Sparkline};

use super::model::{Model, Prompt};
use crate::cli::text::status::{blocked, peers, reads};
use crate::cli::text::{Align, Table, clip, rate, share, size};
use crate::control::status::{Cell, PieceMap, TorrentStatus};

/// Rows of torrents shown at most, so that there is room for the rest.
const MAX_TORRENTS: u16 = 8;
const MAP_ROWS: u16 = 3;

const KEYS: &str = "q quit  ? help  arrows choose  p pause  o on demand  l limit down  u limit up";

const HELP: &str = "\
up, down    another torrent
tab         another mount
p           pause the torrent, or go on with it
o           fetch it on demand, or all of it
l, u        limit what comes from peers, what goes to them
q           quit

pieces      # here   = some of it here   + under way
            ~ needed soon   > a reader is here   ! a read waits
            . missing   - left out

peers       D gives us what we want   d has it, and refuses
            U gets what it wants      u wants it, and we refuse
            I called us   E encrypted   P over uTP   S silent";

/// All of it.
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
        let title = format!("{} peers, {} with everything", torrent.peers.len(), torrent.seeds);
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

#[derive(Clone, Copy)]
struct Colours {
    on: bool,
}

impl Colours {
    fn of(self, colour: Color) -> Style {
        if self.on { Style::default().fg(colour) } else { Style::default() }
    }
}

fn section<'a>(title: &str, text: Text<'a>) -> Paragraph<'a> {
    Paragraph::new(text).block(Block::default().borders(Borders::TOP).title(title.to_owned()))
}

fn heading(model: &Model, columns: usize) -> Paragraph<'static> {
    let status = &model.status;
    let total = &status.total;
    let others = if model.has_others() { "  (tab: the next mount)" } else { "" };
    let first = format!(
        "{}  {} of {} here, ratio {:.2}, {} peers{others}",
        status.mountpoint,
        size(total.have),
        size(total.size),
        total.ratio,
        total.peers
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

fn draw_rates(model: &Model, colours: Colours, frame: &mut Frame<'_>, area: Rect) {
    let [down, up] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(area);
    let limits = model.status.limits;
    let total = &model.status.total;
    for (area, word, now, limit, history, colour) in [
        (down, "down", total.download_rate, limits.download, &model.down, Color::Green),
        (up, "up", total.upload_rate, limits.upload, &model.up, Color::Blue),
    ] {
        let limit = limit.map_or(String::new(), |limit| format!(" (limit {})", rate(limit)));
        let title = format!("{word} {}{limit}", rate(now));
        let shown = history.len().saturating_sub(usize::from(area.width));
        let graph = Sparkline::default()
            .block(Block::default().borders(Borders::TOP).title(title))
            .data(history.iter().skip(shown))
            .style(colours.of(colour));
        frame.render_widget(graph, area);
    }
}

fn torrent_list(model: &Model, colours: Colours, area: Rect) -> Paragraph<'static> {
    use Align::{Left, Right};
    let headings = [
        ("", Left),
        ("torrent", Left),
        ("state", Left),
        ("here", Right),
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
    // The chosen one is always among those shown.
    let rows = usize::from(area.height).saturating_sub(2).max(1);
    let first = (model.torrent + 1).saturating_sub(rows);
    let shown = lines.split_off(1).into_iter().enumerate().skip(first).take(rows);
    let mut text: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    text.extend(shown.map(|(at, line)| {
        let chosen = if at == model.torrent { Modifier::BOLD } else { Modifier::empty() };
        Line::styled(line, colours.of(Color::Reset).add_modifier(chosen))
    }));
    let count = model.status.torrents.len();
    let title = if count == 1 { "1 torrent".to_owned() } else { format!("{count} torrents") };
    section(&title, text.into())
}

fn draw_map(torrent: &TorrentStatus, map: Option<&PieceMap>, colours: Colours, frame: &mut Frame<'_>, area: Rect) {
    let columns = usize::from(area.width);
    let cells = map.map_or(Vec::new(), |map| gather(&map.cells, columns * usize::from(MAP_ROWS)));
    let lines: Vec<Line<'_>> = cells
        .chunks(columns.max(1))
        .map(|row| {
            let signs = row.iter().map(|cell| {
                let (sign, colour) = sign(cell);
                Span::styled(sign, colours.of(colour))
            });
            Line::from(signs.collect::<Vec<_>>())
        })
        .collect();
    let title =
        format!("pieces: {} of {}, {} each", torrent.pieces_had, torrent.pieces, size(torrent.piece_length.into()));
    frame.render_widget(section(&title, lines.into()), area);
}

/// As many cells as there is room for.
fn gather(cells: &[Cell], room: usize) -> Vec<Cell> {
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

/// What matters most of a stretch of pieces.
fn sign(cell: &Cell) -> (&'static str, Color) {
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

fn waiting(torrent: &TorrentStatus, colours: Colours, area: Rect) -> Paragraph<'static> {
    let columns = usize::from(area.width);
    let rows = usize::from(area.height).saturating_sub(1);
    let lines = blocked(&torrent.blocked_reads).into_iter().flat_map(|[read, awaited]| {
        [Line::styled(clip(&read, columns), colours.of(Color::Red)), Line::raw(clip(&format!("  {awaited}"), columns))]
    });
    let lines: Vec<Line<'_>> = lines.take(rows).collect();
    section(&format!("{} reads wait", torrent.blocked_reads.len()), lines.into())
}

fn footing(model: &Model, colours: Colours) -> Line<'static> {
    match (&model.prompt, &model.message) {
        (Some(Prompt { down, text }), _) => {
            let what = if *down { "from peers" } else { "to peers" };
            Line::raw(format!("limit of what goes {what}, as 500KiB or 2MiB; 0 is none: {text}_"))
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
    fn everything_has_its_place_in_80_by_24() {
        let mut model = Model::new(2, status(&["alpha", "beta"]));
        let cell = |have, blocked| Cell { pieces: 2, have, blocked, ..Cell::default() };
        let cells = vec![cell(2, false), cell(1, false), cell(0, true), cell(0, false)];
        model.look(status(&["alpha", "beta"]), Some(PieceMap { pieces: 10, cells }));
        let screen = shown(&model, 80, 24);
        for part in [
            "/mnt/a  500 B of 0.98 KiB here",
            "tab: the next mount",
            "down 10 B/s",
            "2 torrents",
            ">  alpha",
            "50.0 %",
            "pieces: 5 of 10, 100 B each",
            "#=!.",
            "1 reads wait",
            "waits 1.5 s: alpha/film at 7 B",
            "no peer has it",
            "0 peers",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part}: {screen}");
        }
        model.help = true;
        assert!(shown(&model, 80, 24).contains("a read waits"));
        // However small it is, it is drawn.
        for (width, height) in [(1, 1), (10, 3), (20, 8), (300, 100)] {
            shown(&model, width, height);
        }
        shown(&Model::new(1, status(&[])), 80, 24);
    }

    #[test]
    fn many_torrents_scroll_with_the_choice() {
        let names: Vec<String> = (0..30).map(|n| format!("torrent-{n:02}")).collect();
        let mut model = Model::new(1, status(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        model.torrent = 29;
        let screen = shown(&model, 80, 24);
        assert!(screen.contains(">  torrent-29") && !screen.contains("torrent-00"), "{screen}");
    }

    #[test]
    fn cells_are_gathered_without_loss() {
        let cells: Vec<Cell> = (0..100).map(|n| Cell { pieces: 3, have: n % 4, ..Cell::default() }).collect();
        for room in [1, 7, 99, 100, 500] {
            let gathered = gather(&cells, room);
            assert_eq!(gathered.len(), room.min(100));
            assert_eq!(gathered.iter().map(|cell| cell.pieces).sum::<u32>(), 300);
            assert_eq!(gathered.iter().map(|cell| cell.have).sum::<u32>(), 150);
        }
        assert!(gather(&[], 5).is_empty());
    }
}
