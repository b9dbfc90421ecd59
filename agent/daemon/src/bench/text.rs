//! The report for people.

use super::figures::Rounds;
use super::report::{DelayError, Figures, Goal, Idle, Limit, Memory, Packets, Report, Rtt, Throughput};

pub(super) fn of(report: &Report) -> String {
    let Figures { plane, rounds, round_s, throughput, packets, rtt, delay, memory, idle, .. } = &report.figures;
    let head = format!(
        "{}\nplane    {plane}; the middle of {rounds} rounds of {round_s} s each, and between what they lay; {} s in all",
        report.machine.text(),
        report.took_s.round()
    );
    let tables = [
        rows(
            throughput,
            &["THROUGHPUT", "DELAY ms", "FLOWS", "Gbit/s", "TO RAW", "TO mm-delay", "CPU s/Gbit", "PLANE'S"],
            through,
        ),
        rows(packets, &["PACKETS OF 64 BYTES", "A SECOND", "TO RAW", "LOST"], small),
        rows(rtt, &["ROUND TRIPS", "p50 us", "p99 us", "MAX us", "ADDED p50 us"], trips),
        rows(
            delay,
            &["DELAY ms", "OVER p50 us", "OVER p99 us", "MAX us", "p50 BEYOND RAW us", "EARLIEST us", "LOST"],
            delays,
        ),
        rows(memory, &["FRAMES OF BYTES", "HELD MiB", "MEMORY MiB", "RATIO", "ALL IT MAY"], memories),
        rows(idle.as_slice(), &["AN IDLE AGENT: MEMORY MiB", "WAKE-UPS/s", "CPU %", "THREADS", "WATCHED s"], idles),
        rows(&report.goals, &["GOAL", "IS", "AIMED AT", "MET"], goals),
    ];
    std::iter::once(head).chain(tables.into_iter().flatten()).collect::<Vec<_>>().join("\n\n")
}

fn through(row: &Throughput) -> Vec<String> {
    let mut cells = vec![row.way.name().to_owned(), row.delay_ms.to_string(), row.flows.to_string()];
    match &row.absent {
        Some(why) => cells.push(why.clone()),
        None if row.rounds_full > 0 => cells.push(format!("{} ({} full)", spread(row.gbit_per_s), row.rounds_full)),
        None => cells.push(spread(row.gbit_per_s)),
    }
    cells.extend([row.ratio_to_veth, row.ratio_to_mm_delay].map(spread));
    cells.extend([row.cpu_s_per_gbit, row.plane_cpu_s_per_gbit].map(middle));
    cells
}

fn small(row: &Packets) -> Vec<String> {
    vec![row.way.name().to_owned(), middle(row.packets_per_s), spread(row.ratio_to_veth), row.lost_packets.to_string()]
}

fn trips(row: &Rtt) -> Vec<String> {
    let name = row.way.name().to_owned();
    vec![name, middle(row.p50_us), middle(row.p99_us), short(row.max_us), spread(row.added_p50_us)]
}

fn delays(row: &DelayError) -> Vec<String> {
    let name = if row.delay_ms == 0 { "raw veth".to_owned() } else { row.delay_ms.to_string() };
    let figures = [middle(row.p50_us), middle(row.p99_us), short(row.max_us), spread(row.beyond_raw_p50_us)];
    let rest = [short(row.earliest_us), row.lost.to_string()];
    std::iter::once(name).chain(figures).chain(rest).collect()
}

fn memories(row: &Memory) -> Vec<String> {
    let full = if row.full { "yes" } else { "no" };
    vec![row.frame_bytes.to_string(), short(row.held_mib), short(row.rss_mib), short(row.ratio), full.to_owned()]
}

fn idles(row: &Idle) -> Vec<String> {
    let Idle { seconds, rss_mib, wakeups_per_s, cpu_percent, threads } = row;
    vec![short(*rss_mib), short(*wakeups_per_s), short(*cpu_percent), threads.to_string(), short(*seconds)]
}

fn goals(row: &Goal) -> Vec<String> {
    let limit = match row.limit {
        Limit::AtLeast(least) => format!("at least {least}"),
        Limit::AtMost(most) => format!("at most {most}"),
    };
    let met = if row.met { "yes" } else { "NO" };
    vec![row.name.clone(), short(row.measured), format!("{limit} {}", row.unit), met.to_owned()]
}

fn middle(rounds: Option<Rounds>) -> String {
    rounds.map_or_else(|| "-".to_owned(), |rounds| short(rounds.median))
}

fn spread(rounds: Option<Rounds>) -> String {
    let shown = |Rounds { median, min, max }| format!("{} ({} to {})", short(median), short(min), short(max));
    rounds.map_or_else(|| "-".to_owned(), shown)
}

/// Three digits are enough for people.
fn short(figure: f64) -> String {
    match figure.abs() {
        f if f < 10.0 => format!("{figure:.2}"),
        f if f < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// A table, unless it is empty. The last column takes what room it wants.
fn rows<T>(rows: &[T], header: &[&str], cells: fn(&T) -> Vec<String>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let header = header.iter().map(|name| (*name).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows.iter().map(cells)).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    Some(lines.iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_names() {
        let table = rows(&["a", "long"], &["WAY", "US"], |way| vec![(*way).to_owned(), "1".to_owned()]);
        assert_eq!(table.as_deref(), Some("WAY   US\na     1\nlong  1"));
        assert_eq!(rows::<&str>(&[], &["WAY"], |_| Vec::new()), None);
    }
}
