//! How much memory this process holds, and how fast that grows.

use std::time::Duration;

/// The resident memory in MiB. `None` where there is no `/proc`, as outside Linux.
pub(crate) fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1024.0)
}

/// The straight line that fits the samples best: its slope in MiB per minute, and how far it rises
/// in all. `None` for too few samples.
pub(crate) fn growth(samples: &[(Duration, f64)]) -> Option<(f64, f64)> {
    let ((first, _), (last, _)) = (samples.first()?, samples.last()?);
    if samples.len() < 10 {
        return None;
    }
    let count = samples.len() as f64;
    let minutes = |time: &Duration| time.as_secs_f64() / 60.0;
    let mean_time = samples.iter().map(|(time, _)| minutes(time)).sum::<f64>() / count;
    let mean_size = samples.iter().map(|(_, size)| size).sum::<f64>() / count;
    let (rise, run) = samples.iter().fold((0.0, 0.0), |(rise, run), (time, size)| {
        let from_mean = minutes(time) - mean_time;
        (rise + from_mean * (size - mean_size), run + from_mean * from_mean)
    });
    let slope = rise / run;
    Some((slope, slope * (minutes(last) - minutes(first))))
}
