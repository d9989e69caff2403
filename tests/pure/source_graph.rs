//! The modules of the crate and the imports between them, read from the source text.
//!
//! The reader knows as much Rust as this takes: tokens, `mod`, `use`, items and paths. It does not expand macros, does
//! not infer types, and therefore sees no method calls. Code under `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The source files of a crate: their paths relative to `src` with forward slashes, and their text.
pub type Sources = BTreeMap<String, String>;

/// Reads every `.rs` file below `src`.
pub fn read_sources(src: &Path) -> Sources {
    let (mut found, mut directories) = (Sources::new(), vec![src.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

// ---- tokens

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Separator,
    Punctuation(char),
    /// A string, character or number. Its value does not matter here.
    Literal,
}

impl Token {
    fn is(&self, symbol: char) -> bool {
        *self == Self::Punctuation(symbol)
    }

    fn word(&self) -> Option<&str> {
        if let Self::Word(word) = self { Some(word) } else { None }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut i) = (Vec::new(), 0);
    while i < text.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < text.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= text.len() {
                        break;
                    }
                }
            }
            ('"', _) => i = string_end(&text, i, &mut out),
            ('b' | 'c', '"') => i = string_end(&text, i + 1, &mut out),
            ('r', '"' | '#') | ('b' | 'c', 'r') if raw_string_end(&text, i).is_some() => {
                i = raw_string_end(&text, i).unwrap();
                out.push(Token::Literal);
            }
            // A character unless it is a lifetime: 'x' and '\n', but not 'static.
            ('\'', next) if next == '\\' || at(i + 2) == '\'' => {
                i += if next == '\\' { 3 } else { 2 };
                while i < text.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                out.push(Token::Literal);
            }
            (':', ':') => {
                out.push(Token::Separator);
                i += 2;
            }
            (digit, _) if digit.is_ascii_digit() => {
                while is_word(at(i)) {
                    i += 1;
                }
                out.push(Token::Literal);
            }
            (first, _) if is_word(first) => {
                let from = i;
                while is_word(at(i)) {
                    i += 1;
                }
                out.push(Token::Word(text[from..i].iter().collect()));
            }
            (space, _) if space.is_whitespace() => i += 1,
            (symbol, _) => {
                out.push(Token::Punctuation(symbol));
                i += 1;
            }
        }
    }
    out
}

/// Skips the string whose opening quote is at `i`.
fn string_end(text: &[char], mut i: usize, out: &mut Vec<Token>) -> usize {
    i += 1;
    while i < text.len() && text[i] != '"' {
        i += if text[i] == '\\' { 2 } else { 1 };
    }
    out.push(Token::Literal);
    i + 1
}

/// Returns the end of the raw string at `i`, such as `br#"…"#`, if there is one.
fn raw_string_end(text: &[char], mut i: usize) -> Option<usize> {
    i += usize::from(text[i] != 'r') + 1;
    let hashes = text[i..].iter().take_while(|c| **c == '#').count();
    i += hashes;
    if text.get(i) != Some(&'"') {
        return None;
    }
    let end = |at: &usize| text[*at] == '"' && text[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (i + 1..text.len()).find(end).map(|at| at + 1 + hashes)
}

/// Returns the index after the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Punctuation('(' | '[' | '{') => depth += 1,
            Token::Punctuation(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Returns the index after the item that starts at `start`: after its `;`, or after its braces.
fn item_end(tokens: &[Token], start: usize) -> usize {
    let mut at = start;
    let mut ends_with_semicolon = false;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(word) if matches!(word.as_str(), "use" | "const" | "static" | "let") => {
                // But not `const fn`.
                ends_with_semicolon = tokens.get(at + 1).and_then(Token::word) != Some("fn");
                at += 1;
            }
            Token::Punctuation(';') => return at + 1,
            Token::Punctuation('{') if !ends_with_semicolon => return closing(tokens, at),
            Token::Punctuation('(' | '[' | '{') => at = closing(tokens, at),
            // A field, a variant or a statement under an attribute ends here at the latest.
            Token::Punctuation(',' | ')' | ']' | '}') if !ends_with_semicolon => return at,
            _ => at += 1,
        }
    }
    at
}

/// Removes the items under `#[cfg(test)]`, and every other attribute.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at].is('#') {
            out.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let open = at + 1 + usize::from(tokens.get(at + 1).is_some_and(|token| token.is('!')));
        if !tokens.get(open).is_some_and(|token| token.is('[')) {
            at += 1;
            continue;
        }
        let end = closing(&tokens, open);
        let words: Vec<_> = tokens[open..end].iter().filter_map(Token::word).collect();
        at = end;
        if words.starts_with(&["cfg"]) && words.contains(&"test") && !words.contains(&"not") {
            while tokens.get(at).is_some_and(|token| token.is('#')) {
                at = closing(&tokens, at + 1);
            }
            at = item_end(&tokens, at);
        }
    }
    out
}

// ---- modules

/// A module's place in the crate: `["swarm", "peer"]`; the crate itself is empty.
pub type ModulePath = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    items: BTreeSet<String>,
    /// Names that `use` imports, with their paths as written.
    imports: Vec<(String, Vec<String>)>,
    globs: Vec<Vec<String>>,
    /// Paths in code and in `use`, as written.
    paths: BTreeSet<Vec<String>>,
    /// Every word of the code, to find the names that a `use x::*` imports.
    words: BTreeSet<String>,
}

/// A crate as far as its imports go.
pub struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// One module's use of a name of another file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from_file: String,
    /// The file that defines the name, found through re-exports.
    pub to_file: String,
    /// The top-level modules on both sides, as the import is written.
    pub from_module: String,
    pub to_module: String,
}

impl Crate {
    /// Reads the module tree from `lib.rs` on. Panics if a `mod` has no file.
    pub fn parse(sources: &Sources) -> Self {
        let mut this = Self { modules: BTreeMap::new() };
        let root = without_tests(tokens(sources.get("lib.rs").expect("lib.rs")));
        this.read_module(sources, &Vec::new(), "lib.rs", &root);
        this
    }

    /// The paths into other crates that a top-level module's code and imports name, with the file of each.
    pub fn foreign_paths(&self, top: &str) -> Vec<(&str, String)> {
        let mut found = Vec::new();
        for (path, module) in self.modules.iter().filter(|(path, _)| path.first().is_some_and(|first| first == top)) {
            let foreign = module.paths.iter().filter(|written| self.start(path, written).is_none());
            found.extend(foreign.map(|written| (module.file.as_str(), written.join("::"))));
        }
        found
    }

    fn read_module(&mut self, sources: &Sources, path: &ModulePath, file: &str, tokens: &[Token]) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let mut at = 0;
        while at < tokens.len() {
            let word = |offset: usize| tokens.get(at + offset).and_then(Token::word);
            match (word(0), word(1)) {
                (Some("mod"), Some(name)) => {
                    let child = [path.as_slice(), &[name.to_owned()]].concat();
                    if tokens.get(at + 2).is_some_and(|token| token.is('{')) {
                        let end = closing(tokens, at + 2);
                        self.read_module(sources, &child, file, &tokens[at + 3..end - 1]);
                        at = end;
                    } else {
                        let base = child.join("/");
                        let candidates = [format!("{base}.rs"), format!("{base}/mod.rs")];
                        let file = candidates.iter().find(|file| sources.contains_key(*file));
                        let file = file.unwrap_or_else(|| panic!("mod {base} has no file"));
                        let tokens = without_tests(self::tokens(&sources[file]));
                        self.read_module(sources, &child, file, &tokens);
                        at += 3;
                    }
                }
                (Some("use"), _) if !tokens.get(at + 1).is_some_and(|token| token.is('<')) => {
                    let end = item_end(tokens, at);
                    let reexport = at > 0 && (tokens[at - 1].word() == Some("pub") || tokens[at - 1].is(')'));
                    let mut tree = &tokens[at + 1..end - 1];
                    module.read_use(&mut tree, Vec::new(), reexport);
                    at = end;
                }
                // `pub(in crate::a)` restricts the visibility and imports nothing.
                (Some("pub"), _)
                    if tokens.get(at + 1).is_some_and(|token| token.is('('))
                        && matches!(word(2), Some("in" | "crate" | "super" | "self")) =>
                {
                    at = closing(tokens, at + 1);
                }
                (Some("macro_rules"), _) => {
                    module.items.extend(tokens.get(at + 2).and_then(Token::word).map(str::to_owned));
                    at += 3;
                }
                (Some("fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static"), Some(name)) => {
                    module.items.insert(name.to_owned());
                    at += 1;
                }
                (Some(first), _) => {
                    // `x.y::<T>()` is a method, not a path.
                    let is_method = at > 0 && tokens[at - 1].is('.');
                    let mut segments = vec![first.to_owned()];
                    at += 1;
                    while tokens.get(at) == Some(&Token::Separator)
                        && let Some(next) = tokens.get(at + 1).and_then(Token::word)
                    {
                        segments.push(next.to_owned());
                        at += 2;
                    }
                    module.words.insert(segments[0].clone());
                    if segments.len() > 1 && !is_method {
                        module.paths.insert(segments);
                    }
                }
                (None, _) => at += 1,
            }
        }
        self.modules.insert(path.clone(), module);
    }

    /// Every import of a name of another file. Panics if a path within the crate leads nowhere.
    ///
    /// A re-export is no import by the file that has it: the user of the name depends on the file that defines it.
    pub fn imports(&self) -> BTreeSet<Import> {
        let mut found = BTreeSet::new();
        for (path, module) in &self.modules {
            let mut add = |scope: &ModulePath, rest: &[String], to_file: String| {
                let path_to = [scope.as_slice(), rest].concat();
                if to_file != module.file {
                    found.insert(Import {
                        from_file: module.file.clone(),
                        to_file,
                        from_module: path.first().cloned().unwrap_or_default(),
                        to_module: path_to.first().cloned().unwrap_or_default(),
                    });
                }
            };
            for written in &module.paths {
                let Some((scope, rest)) = self.start(path, written) else { continue };
                let file = self.resolve(&scope, &rest, 0);
                let file = file.unwrap_or_else(|| panic!("{}: {} leads nowhere", module.file, written.join("::")));
                add(&scope, &rest, file);
            }
            for glob in &module.globs {
                let Some((scope, rest)) = self.start(path, glob) else { continue };
                for word in module.words.iter().filter(|word| !module.has(word)) {
                    let named = [rest.as_slice(), std::slice::from_ref(word)].concat();
                    if let Some(file) = self.resolve(&scope, &named, 0) {
                        add(&scope, &named, file);
                    }
                }
            }
        }
        found
    }

    /// The module where a path as written begins, and the rest of the path. `None` for a path into another crate.
    fn start(&self, module: &ModulePath, written: &[String]) -> Option<(ModulePath, Vec<String>)> {
        let (mut scope, mut rest) = match written[0].as_str() {
            "crate" => (Vec::new(), &written[1..]),
            "self" => (module.clone(), &written[1..]),
            "super" => (module.clone(), written),
            first => {
                let child = [module.as_slice(), &[first.to_owned()]].concat();
                if self.modules.contains_key(&child) {
                    return Some((module.clone(), written.to_vec()));
                }
                // A module that `use` has brought in: `use super::log;`, then `log::start()`.
                let alias = |(alias, path): &&(String, Vec<String>)| alias == first && path[0] != first;
                let (_, imported) = self.modules[module].imports.iter().find(alias)?;
                let (scope, path) = self.start(module, imported)?;
                return Some((scope, [&path, &written[1..]].concat()));
            }
        };
        while rest.first().is_some_and(|segment| segment == "super") {
            scope.pop();
            rest = &rest[1..];
        }
        Some((scope, rest.to_vec()))
    }

    /// The file that defines what `rest` names in the module `scope`.
    fn resolve(&self, scope: &ModulePath, rest: &[String], depth: u32) -> Option<String> {
        let module = self.modules.get(scope)?;
        let Some((name, after)) = rest.split_first() else { return Some(module.file.clone()) };
        let child = [scope.as_slice(), std::slice::from_ref(name)].concat();
        // A name can stand for a module and for an item: `mod check; pub use check::check`.
        if self.modules.contains_key(&child) && (!after.is_empty() || !module.has(name)) {
            return self.resolve(&child, after, depth);
        }
        if module.items.contains(name) {
            return Some(module.file.clone());
        }
        // Longer than any chain of re-exports: a circle.
        if depth > 20 {
            return None;
        }
        for (alias, written) in &module.imports {
            if alias == name
                && let Some((start, path)) = self.start(scope, written)
            {
                return self.resolve(&start, &[&path, after].concat(), depth + 1);
            }
        }
        module.globs.iter().find_map(|glob| {
            let (start, path) = self.start(scope, glob)?;
            self.resolve(&start, &[&path, rest].concat(), depth + 1)
        })
    }
}

impl Module {
    fn has(&self, name: &str) -> bool {
        self.items.contains(name) || self.imports.iter().any(|(alias, _)| alias == name)
    }

    /// Reads one tree of a `use`: `a::b`, `a::{b, c as d, e::*}`.
    fn read_use(&mut self, tree: &mut &[Token], mut path: Vec<String>, reexport: bool) {
        loop {
            match tree.first() {
                Some(Token::Word(word)) if word == "as" => {
                    let alias = tree.get(1).and_then(Token::word).unwrap_or("_").to_owned();
                    *tree = &tree[2..];
                    return self.import(alias, path, reexport);
                }
                Some(Token::Word(word)) => path.push(word.clone()),
                Some(Token::Separator) => {}
                Some(Token::Punctuation('*')) => {
                    *tree = &tree[1..];
                    return self.globs.push(path);
                }
                Some(Token::Punctuation('{')) => {
                    *tree = &tree[1..];
                    loop {
                        match tree.first() {
                            Some(Token::Punctuation('}')) | None => {
                                *tree = tree.get(1..).unwrap_or_default();
                                return;
                            }
                            Some(Token::Punctuation(',')) => *tree = &tree[1..],
                            _ => self.read_use(tree, path.clone(), reexport),
                        }
                    }
                }
                _ => {
                    let alias = path.last().cloned().unwrap_or_default();
                    return self.import(alias, path, reexport);
                }
            }
            *tree = &tree[1..];
        }
    }

    fn import(&mut self, alias: String, mut path: Vec<String>, reexport: bool) {
        // `use a::{self, b}`
        let alias = if alias == "self" { path[path.len() - 2].clone() } else { alias };
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if !reexport {
            self.paths.insert(path.clone());
        }
        self.imports.push((alias, path));
    }
}

// ---- cycles

/// Returns the groups of files that import each other, directly or through others. Each is sorted.
pub fn cycles(imports: &BTreeSet<Import>) -> Vec<Vec<String>> {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in imports {
        edges.entry(&import.from_file).or_default().insert(&import.to_file);
    }
    let reachable = |from| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(file) = left.pop() {
            left.extend(edges.get(file).into_iter().flatten().filter(|to| seen.insert(**to)));
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|file| (*file, reachable(file))).collect();
    let mut groups = BTreeSet::new();
    for (file, reached) in &reach {
        let back = |other: &&&str| reach.get(**other).is_some_and(|reached| reached.contains(file));
        let group: Vec<String> = reached.iter().filter(back).map(|other| (*other).to_owned()).collect();
        if !group.is_empty() {
            groups.insert(group);
        }
    }
    groups.into_iter().collect()
}
