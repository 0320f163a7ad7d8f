//! What a recorder of metrics was told, in the form in which Prometheus would show it.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::BTreeMap;

use metrics_util::debugging::{DebugValue, Snapshotter};

/// `name{label="value",..}` and what was told about it. Labels are in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) gauges: BTreeMap<String, f64>,
    pub(crate) histograms: BTreeMap<String, Vec<f64>>,
    /// Each metric's kind, unit and description.
    pub(crate) described: BTreeMap<String, (&'static str, String, String)>,
}

impl Readings {
    /// Takes all that was told so far; it is not told again.
    pub(crate) fn take(from: &Snapshotter) -> Self {
        let mut readings = Self::default();
        for (key, unit, text, value) in from.snapshot().into_vec() {
            let key = key.key();
            let mut labels: Vec<String> =
                key.labels().map(|label| format!("{}={:?}", label.key(), label.value())).collect();
            labels.sort();
            let shown = match labels.is_empty() {
                true => key.name().to_owned(),
                false => format!("{}{{{}}}", key.name(), labels.join(",")),
            };
            let kind = match value {
                DebugValue::Counter(count) => {
                    readings.counters.insert(shown, count);
                    "counter"
                }
                DebugValue::Gauge(level) => {
                    readings.gauges.insert(shown, level.into_inner());
                    "gauge"
                }
                DebugValue::Histogram(values) => {
                    let values = values.into_iter().map(|value| value.into_inner()).collect();
                    readings.histograms.insert(shown, values);
                    "histogram"
                }
            };
            let unit = unit.map(|unit| unit.as_str().to_owned()).unwrap_or_default();
            let described = (kind, unit, text.unwrap_or_default().to_string());
            readings.described.insert(key.name().to_owned(), described);
        }
        readings
    }

    /// The counters of one name that are above zero.
    pub(crate) fn counted(&self, name: &str) -> BTreeMap<String, u64> {
        let of_name = |shown: &&String| shown.split('{').next() == Some(name);
        let counters = self.counters.iter().filter(|(shown, count)| of_name(shown) && **count > 0);
        counters.map(|(shown, count)| (shown.clone(), *count)).collect()
    }

    /// The sum of one name's counters.
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.counted(name).values().sum()
    }
}
