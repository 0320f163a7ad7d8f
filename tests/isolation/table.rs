//! What arrived where, as rows that can be read and counted.

use std::fmt;

use crate::harness::PLACES;

/// What one server was sent in one combination of credential and scenario.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) asked: usize,
    pub(crate) own: bool,
    pub(crate) callers: bool,
    /// Whose keys it was sent that are not for it.
    pub(crate) foreign: Vec<String>,
}

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys = self.foreign.iter().map(|key| key.to_uppercase()).collect::<Vec<_>>();
        keys.extend(self.own.then(|| "its own".to_owned()));
        if self.callers && self.foreign.is_empty() {
            keys.push("the caller's".to_owned());
        }
        match (self.asked, keys.is_empty()) {
            (0, true) => f.pad("·"),
            (_, true) => f.pad("no key"),
            (_, false) => f.pad(&keys.join(", ")),
        }
    }
}

pub(crate) struct Row {
    pub(crate) form: &'static str,
    pub(crate) scenario: &'static str,
    pub(crate) arrived: [Arrived; 4],
    /// What is not as it should be.
    pub(crate) wrong: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// One for each credential, scenario and server.
    pub(crate) fn combinations(&self) -> usize {
        self.rows.iter().map(|row| row.arrived.len()).sum()
    }

    /// How many keys arrived at a server that they are not for.
    pub(crate) fn foreign(&self) -> usize {
        self.rows.iter().flat_map(|row| &row.arrived).map(|arrived| arrived.foreign.len()).sum()
    }

    pub(crate) fn wrong(&self) -> Vec<String> {
        let told = |row: &Row| {
            let row_name = format!("{}, {}", row.form, row.scenario);
            row.wrong.iter().map(|wrong| format!("{row_name}: {wrong}")).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(told).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third, bystander] = PLACES;
        let (form, scenario) = ("credential", "scenario");
        writeln!(f, "{form:<25} {scenario:<44} {first:<13} {second:<13} {third:<13} {bystander}")?;
        writeln!(f, "(· not asked)")?;
        for Row { form, scenario, arrived: [first, second, third, bystander], .. } in &self.rows {
            let row = format!(
                "{form:<25} {scenario:<44} {first:<13} {second:<13} {third:<13} {bystander}"
            );
            writeln!(f, "{}", row.trim_end())?;
        }
        Ok(())
    }
}
