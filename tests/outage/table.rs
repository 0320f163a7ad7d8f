//! One table of all that was measured. The test that ends last prints it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::support::lock;

/// One set-up, and what came of it.
pub(crate) struct Row {
    pub(crate) setup: String,
    /// Sockets, or virtual time.
    pub(crate) over: &'static str,
    pub(crate) seen: String,
    pub(crate) must: String,
}

/// The parts of the table, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    InARow,
    AtOnce,
    Recovery,
    Deadlines,
    Blame,
}

impl Part {
    /// How many rows it has.
    const ROWS: [(Self, usize); 5] = [
        (Self::InARow, 5),
        (Self::AtOnce, 5),
        (Self::Recovery, 5),
        (Self::Deadlines, 8),
        (Self::Blame, 8),
    ];

    fn title(self) -> &'static str {
        match self {
            Self::InARow | Self::AtOnce => "A is down, B is well",
            Self::Recovery => "A recovers while it rests",
            Self::Deadlines => "callers have deadlines",
            Self::Blame => "what is to blame",
        }
    }
}

static TABLE: Mutex<BTreeMap<(Part, usize), Row>> = Mutex::new(BTreeMap::new());

impl Row {
    /// Enters it at this place, and prints the table if it is the last.
    pub(crate) fn enter(self, part: Part, at: usize) {
        let mut table = lock(&TABLE);
        assert!(table.insert((part, at), self).is_none(), "{part:?} {at} is taken");
        if table.len() == Part::ROWS.map(|(_, rows)| rows).iter().sum::<usize>() {
            print(&table);
        }
    }
}

fn print(table: &BTreeMap<(Part, usize), Row>) {
    let width = |cell: fn(&Row) -> &str| {
        table.values().map(|row| cell(row).chars().count()).max().unwrap_or_default()
    };
    let (setup, over, seen) =
        (width(|row| &row.setup), width(|row| row.over), width(|row| &row.seen));
    let mut text = String::from("\n");
    let mut title = "";
    for ((part, _), row) in table {
        if part.title() != title {
            title = part.title();
            text += &format!("\n{title:<setup$}  {:<over$}  {:<seen$}  must be\n", "in", "seen");
        }
        let Row { setup: what, over: place, seen: came, must } = row;
        text += &format!("{what:<setup$}  {place:<over$}  {came:<seen$}  {must}\n");
    }
    println!("{text}");
}

/// A number as it is read.
pub(crate) fn thousands(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", number / 1_000, number % 1_000),
    }
}
