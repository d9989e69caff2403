//! The sample library of the demo: music, video, texts and a tree of small files. It is generated at run time, always with
//! the same contents, so that the program need not contain large or copyrighted files.

use std::collections::HashMap;
use std::f32::consts::TAU;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::metainfo::{FileKind, NewFile};

/// Size of the library.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Number of repetitions of the music, of 16 seconds each.
    pub rounds: u32,
    /// Number of video frames, at 25 per second.
    pub frames: u32,
    /// Number of directories with small files.
    pub folders: u32,
}

impl Default for Scale {
    /// About 45 MB: 2 minutes of music and 10 seconds of video.
    fn default() -> Self {
        Self { rounds: 8, frames: 250, folders: 12 }
    }
}

/// Writes the library to `dir`, which must exist. Returns its files in the order of writing, with paths relative to `dir`.
pub fn write(dir: &Path, scale: Scale) -> io::Result<Vec<NewFile>> {
    let mut library = Library { dir, files: Vec::new() };
    library.add("music/canon.wav", |out| wav(out, &music(scale.rounds)))?;
    library.add("video/waves.y4m", |out| y4m(out, scale.frames))?;
    library.add("README.txt", |out| out.write_all(README.as_bytes()))?;
    library.add("texts/a name with spaces, and an umlaut: \u{fc}.txt", |out| {
        writeln!(out, "File names can be anything.")
    })?;
    library.add("texts/empty.txt", |_| Ok(()))?;
    library
        .add("texts/squares.txt", |out| (1..=20_000).try_for_each(|n| writeln!(out, "{n} times {n} is {}", n * n)))?;
    for folder in 0..scale.folders {
        for file in 0..10 {
            let text = format!("File {file} of folder {folder}.\n").repeat(file * 37 + 1);
            library.add(&format!("tree/{folder:02}/{file}.txt"), |out| out.write_all(text.as_bytes()))?;
        }
    }
    library.add("hello.sh", |out| out.write_all(b"#!/bin/sh\necho \"Hello from inside a torrent.\"\n"))?;
    if let Some(script) = library.files.last_mut() {
        script.kind = FileKind::Regular { executable: true };
        fs::set_permissions(dir.join("hello.sh"), Permissions::from_mode(0o755))?;
    }
    Ok(library.files)
}

const README: &str = "\
This directory is a torrent. Its files are fetched from peers as they are read.

  music/canon.wav   two minutes of generated music: play it, and seek in it
  video/waves.y4m   a short video without sound, for mpv, ffplay or vlc
  hello.sh          a script that can be run in place
  tree              many small files: try ls -lR, grep -r, tar

Everything was generated on this machine and is in the public domain.
";

/// The library being written.
struct Library<'a> {
    dir: &'a Path,
    files: Vec<NewFile>,
}

impl Library<'_> {
    /// Writes a file and adds it to the list.
    fn add(&mut self, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = BufWriter::with_capacity(1 << 16, File::create(&path)?);
        fill(&mut out)?;
        let file = out.into_inner().map_err(|error| error.into_error())?;
        let path = name.split('/').map(str::to_owned).collect();
        let kind = FileKind::Regular { executable: false };
        self.files.push(NewFile { path, len: file.metadata()?.len(), kind });
        Ok(())
    }
}

// The music: the eight chords of Pachelbel's canon, a bar of two seconds each. Each bar has a bass note and an arpeggio that
// moves from left to right; from the second round on, also a melody of the chord's notes.

/// Samples per second, as on a CD.
const SAMPLE_RATE: u32 = 44_100;
/// Samples per bar.
const BAR: usize = 2 * SAMPLE_RATE as usize;
/// The chords, each as its root (a MIDI note) and whether it is minor: D A b f# G D G A.
const CHORDS: [(u8, bool); 8] =
    [(50, false), (45, false), (47, true), (42, true), (43, false), (38, false), (43, false), (45, false)];

/// Returns the samples of the left and right channel, from -1 to 1.
fn music(rounds: u32) -> Vec<[f32; 2]> {
    let bars = rounds as usize * CHORDS.len();
    let mut harp = Harp { mix: vec![[0.0; 2]; bars * BAR], strings: HashMap::new() };
    for bar in 0..bars {
        let (root, minor) = CHORDS[bar % CHORDS.len()];
        let round = bar / CHORDS.len();
        let chord = [0, if minor { 3 } else { 4 }, 7, 12].map(|step| root + 12 + step);
        let at = bar * BAR;
        harp.pluck(at, root, 0.4, 0.5);
        for (eighth, voice) in [0, 1, 2, 3, 2, 1, 2, 3].into_iter().enumerate() {
            harp.pluck(at + eighth * BAR / 8, chord[voice], 0.2, 0.2 + 0.08 * eighth as f32);
        }
        if round > 0 {
            let walk = [2, 1, 3, 2].map(|step| chord[(step + round) % 4] + 12);
            for (quarter, note) in walk.into_iter().enumerate() {
                harp.pluck(at + quarter * BAR / 4, note, 0.25, 0.65);
            }
        }
    }
    // Fade out, to avoid a click at the end.
    let mut mix = harp.mix;
    let fade = mix.len().min(BAR);
    for (n, sample) in mix.iter_mut().rev().take(fade).enumerate() {
        *sample = sample.map(|side| side * n as f32 / fade as f32);
    }
    mix
}

/// Mixes plucked notes.
struct Harp {
    mix: Vec<[f32; 2]>,
    /// Sound of each note played so far, as a cache.
    strings: HashMap<u8, Vec<f32>>,
}

impl Harp {
    /// Adds a note at the sample `at`. `pan` is 0 for left, 1 for right.
    fn pluck(&mut self, at: usize, note: u8, loudness: f32, pan: f32) {
        let string = self.strings.entry(note).or_insert_with(|| string(note));
        let (left, right) = (loudness * (1.0 - pan).sqrt(), loudness * pan.sqrt());
        for (sample, level) in self.mix[at..].iter_mut().zip(string) {
            sample[0] += *level * left;
            sample[1] += *level * right;
        }
    }
}

/// Returns a second of a decaying note with three harmonics, of which the higher ones decay faster.
fn string(note: u8) -> Vec<f32> {
    let rate = SAMPLE_RATE as f32;
    let frequency = 440.0 * 2f32.powf((f32::from(note) - 69.0) / 12.0);
    let level = |n: u32| {
        let t = n as f32 / rate;
        let harmonic = |(h, share): (f32, f32)| share * (-4.0 * h * t).exp() * (TAU * frequency * h * t).sin();
        let sound: f32 = [(1.0, 0.7), (2.0, 0.2), (3.0, 0.1)].into_iter().map(harmonic).sum();
        // Fade in and out, to avoid clicks.
        sound * (t / 0.005).min(1.0) * ((1.0 - t) / 0.1).min(1.0)
    };
    (0..SAMPLE_RATE).map(level).collect()
}

/// Writes a WAV file: 16 bits, stereo.
fn wav(out: &mut impl Write, samples: &[[f32; 2]]) -> io::Result<()> {
    const FRAME: u32 = 4;
    let too_long = || io::Error::other("too long for a WAV file");
    let bytes = u32::try_from(samples.len()).ok().and_then(|n| n.checked_mul(FRAME)).ok_or_else(too_long)?;
    out.write_all(b"RIFF")?;
    out.write_all(&bytes.checked_add(36).ok_or_else(too_long)?.to_le_bytes())?;
    out.write_all(b"WAVEfmt \x10\0\0\0\x01\0\x02\0")?;
    out.write_all(&SAMPLE_RATE.to_le_bytes())?;
    out.write_all(&(SAMPLE_RATE * FRAME).to_le_bytes())?;
    out.write_all(b"\x04\0\x10\0data")?;
    out.write_all(&bytes.to_le_bytes())?;
    for side in samples.iter().flatten() {
        // The conversion of a float saturates.
        out.write_all(&((side * 32767.0) as i16).to_le_bytes())?;
    }
    Ok(())
}

/// Width of the video in pixels.
const WIDTH: usize = 320;
/// Height of the video in pixels.
const HEIGHT: usize = 180;

/// Writes a YUV4MPEG2 file: waves from three directions, with changing colours.
fn y4m(out: &mut impl Write, frames: u32) -> io::Result<()> {
    let table: [u8; 256] = std::array::from_fn(|n| (128.0 + 100.0 * (TAU * n as f32 / 256.0).sin()) as u8);
    let wave = |phase: usize| usize::from(table[phase & 255]);
    writeln!(out, "YUV4MPEG2 W{WIDTH} H{HEIGHT} F25:1 Ip A1:1 C420jpeg")?;
    let mut plane = Vec::with_capacity(WIDTH * HEIGHT);
    for t in 0..frames as usize {
        out.write_all(b"FRAME\n")?;
        // The luma plane, then the two chroma planes at half the resolution.
        for (step, [right, down, across]) in [(1, [2, 3, 1]), (2, [1, 2, 3]), (2, [3, 1, 2])] {
            plane.clear();
            for y in (0..HEIGHT).step_by(step) {
                let row = wave(y * down + 5 * t);
                let pixel = |x| (wave(x * right + 3 * t) + row + wave((x + y) * across + 254 * t)) / 3;
                plane.extend((0..WIDTH).step_by(step).map(|x| pixel(x) as u8));
            }
            out.write_all(&plane)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Scale = Scale { rounds: 1, frames: 3, folders: 2 };

    #[test]
    fn files_match_the_list_and_are_reproducible() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [files, again] = dirs.each_ref().map(|dir| write(dir.path(), SMALL).unwrap());
        assert_eq!(files, again);
        assert_eq!(files.len(), 27);
        for file in &files {
            let [one, other] = dirs.each_ref().map(|dir| dir.path().join(file.path.join("/")));
            let bytes = fs::read(&one).unwrap();
            assert_eq!(bytes.len() as u64, file.len);
            assert!(bytes == fs::read(&other).unwrap(), "{one:?}");
            let mode = fs::metadata(&one).unwrap().permissions().mode();
            assert_eq!(file.kind, FileKind::Regular { executable: mode & 0o111 == 0o111 }, "{one:?}");
        }
        let scripts = files.iter().filter(|file| file.kind == FileKind::Regular { executable: true });
        assert_eq!(scripts.count(), 1);
        let script = std::process::Command::new("sh").arg(dirs[0].path().join("hello.sh")).output().unwrap();
        assert_eq!(script.stdout, b"Hello from inside a torrent.\n");
    }

    #[test]
    fn the_wav_has_the_right_length_and_is_not_silent() {
        let mut file = Vec::new();
        let samples = music(2);
        wav(&mut file, &samples).unwrap();
        assert_eq!(samples.len(), 32 * SAMPLE_RATE as usize);
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((word(4) + 8, word(40) + 44), (file.len(), file.len()));
        let peak = samples.iter().flatten().fold(0f32, |peak, side| peak.max(side.abs()));
        assert!((0.2..0.95).contains(&peak), "{peak}");
    }

    #[test]
    fn the_video_moves_and_has_whole_frames() {
        let mut file = Vec::new();
        y4m(&mut file, 3).unwrap();
        let header = file.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let frames: Vec<&[u8]> = file[header..].chunks(6 + WIDTH * HEIGHT * 3 / 2).collect();
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|frame| frame.starts_with(b"FRAME\n") && frame.len() == frames[0].len()));
        assert_ne!(frames[0], frames[1]);
    }

    #[test]
    fn the_default_size_is_moderate() {
        let Scale { rounds, frames, .. } = Scale::default();
        let music = u64::from(rounds) * 16 * u64::from(SAMPLE_RATE) * 4;
        let film = u64::from(frames) * (WIDTH * HEIGHT * 3 / 2) as u64;
        assert!((40_000_000..60_000_000).contains(&(music + film)), "{music} + {film}");
    }
}
