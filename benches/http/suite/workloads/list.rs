//! Which workloads there are.

use super::append::Load;
use super::live::FanOut;
use super::{Family, Row, Work, catch_up};
use crate::suite::arguments::Arguments;
use crate::suite::process;

/// All that the arguments ask for.
///
/// # Errors
/// In one line for a person.
pub(crate) fn rows(arguments: &Arguments) -> Result<Vec<Row>, String> {
    let mut all = if arguments.quick { quick() } else { usual(arguments)? };
    all.extend(of_size(arguments));
    for wanted in &arguments.workloads {
        if !all.iter().any(|row| row.name == *wanted || row.family.name() == wanted) {
            return Err(format!("--workloads: there is no {wanted}; --list names all"));
        }
    }
    Ok(all.into_iter().filter(|row| arguments.wants(row.family, &row.name)).collect())
}

fn row(family: Family, name: impl Into<String>, unit: &'static str, work: Work) -> Row {
    let less_is_better =
        matches!(family, Family::LongPoll | Family::Sse | Family::IdleSse | Family::ManyStreams);
    let own_only = matches!(family, Family::Growth | Family::ManyStreams);
    Row { family, name: name.into(), unit, less_is_better, own_only, work }
}

fn append(connections: usize, streams: usize, bytes: usize, json: bool, producers: bool) -> Row {
    let load = Load { connections, streams, bytes, json, producers };
    row(Family::Append, load.name(), "/s", Work::Append(load))
}

fn catch_up(mebibytes: usize, json: bool, connections: usize) -> Row {
    let kind = if json { "json" } else { "bytes" };
    let name = format!("catch-up-{mebibytes}MiB-{kind}-c{connections}");
    row(Family::CatchUp, name, "MB/s", Work::CatchUp(catch_up::Load { mebibytes, json, connections }))
}

fn small(connections: usize) -> [Row; 3] {
    [
        row(Family::Create, format!("create-c{connections}"), "/s", Work::Create { connections }),
        row(Family::Head, format!("head-c{connections}"), "/s", Work::Head { connections }),
        row(Family::Get, format!("get-1kB-c{connections}"), "/s", Work::Get { connections }),
    ]
}

fn pairs(pairs: usize) -> [Row; 2] {
    [
        row(Family::LongPoll, format!("long-poll-{pairs}"), "µs", Work::LongPoll { pairs }),
        row(Family::Sse, format!("sse-{pairs}"), "µs", Work::Sse { pairs }),
    ]
}

fn fan_out(streams: usize, readers: usize, writers: u8, appends_per_second: Option<u32>) -> Row {
    let pace = appends_per_second.map_or(String::new(), |rate| format!("-at-{rate}"));
    let name = format!("fan-out-{streams}x{readers}-w{writers}{pace}");
    row(Family::FanOut, name, "/s", Work::FanOut(FanOut { streams, readers, writers, appends_per_second }))
}

fn idle(connections: usize) -> Row {
    row(Family::IdleSse, format!("idle-sse-{connections}"), "B each", Work::IdleSse { connections })
}

fn mixed() -> Row {
    row(Family::Mixed, "mixed", "/s", Work::Mixed)
}

/// What takes room and time, and is asked for by its size.
fn of_size(arguments: &Arguments) -> Vec<Row> {
    let mut rows = Vec::new();
    if !arguments.growth.is_empty() {
        let gigabytes = arguments.growth.clone();
        rows.push(row(Family::Growth, "growth", "/s", Work::Growth { gigabytes }));
    }
    for &streams in &arguments.many_streams {
        let name = format!("many-streams-{streams}");
        rows.push(row(Family::ManyStreams, name, "B each", Work::ManyStreams { streams }));
    }
    rows
}

/// A little of everything.
fn quick() -> Vec<Row> {
    let mut rows = vec![
        append(1, 1, 100, false, false),
        append(64, 64, 100, false, false),
        append(16, 64, 1000, true, true),
        append(4, 4, 1_000_000, false, false),
    ];
    rows.extend(small(16));
    rows.extend([catch_up(16, false, 2), catch_up(16, true, 2)]);
    rows.extend(pairs(1));
    rows.extend([fan_out(1, 100, 16, None), fan_out(10, 20, 1, Some(500)), idle(200), mixed()]);
    rows
}

fn usual(arguments: &Arguments) -> Result<Vec<Row>, String> {
    let mut rows = appends(arguments)?;
    rows.extend(small(64));
    for json in [false, true] {
        rows.extend([catch_up(16, json, 8), catch_up(1024, json, 2)]);
    }
    rows.extend(pairs(1));
    rows.extend(pairs(64));
    rows.extend([
        fan_out(1, 1000, 1, None),
        fan_out(1, 1000, 64, None),
        fan_out(10, 100, 1, Some(2000)),
        fan_out(10, 1000, 8, None),
        fan_out(1000, 10, 1, None),
    ]);
    let connections = arguments.idle_connections.min(process::connections_max());
    if connections < arguments.idle_connections {
        eprintln!("the limit on open files allows {connections} idle connections");
    }
    rows.extend([idle(connections), mixed()]);
    Ok(rows)
}

fn appends(arguments: &Arguments) -> Result<Vec<Row>, String> {
    let Arguments { connections, streams, sizes, types, producers, .. } = arguments;
    let given = [connections.len(), streams.len(), sizes.len(), types.len(), producers.len()];
    if given == [0; 5] {
        return Ok(usual_appends());
    }
    let types = choices("--types", types, "bytes", "json")?;
    let producers = choices("--producers", producers, "no", "yes")?;
    let mut rows = Vec::new();
    for connections in or(connections, 64) {
        for streams in or(streams, 0) {
            for bytes in or(sizes, 100) {
                for &json in &types {
                    for &producers in &producers {
                        let streams = if streams == 0 { connections } else { streams };
                        rows.push(append(connections, streams, bytes, json, producers));
                    }
                }
            }
        }
    }
    Ok(rows)
}

fn or(given: &[usize], default: usize) -> Vec<usize> {
    if given.is_empty() { vec![default] } else { given.to_vec() }
}

/// For each word whether it is `yes` rather than `no`; without any words `no` alone.
fn choices(option: &str, words: &[String], no: &str, yes: &str) -> Result<Vec<bool>, String> {
    if words.is_empty() {
        return Ok(vec![false]);
    }
    let choice = |word: &String| match word.as_str() {
        word if word == no => Ok(false),
        word if word == yes => Ok(true),
        word => Err(format!("{option}: {word:?} is neither {no} nor {yes}")),
    };
    words.iter().map(choice).collect()
}

fn usual_appends() -> Vec<Row> {
    vec![
        append(1, 1, 100, false, false),
        append(64, 64, 100, false, false),
        append(256, 256, 100, false, false),
        append(1024, 1024, 100, false, false),
        append(64, 1, 100, false, false),
        append(256, 10_000, 100, false, false),
        append(256, 100_000, 100, false, false),
        append(64, 64, 1000, false, false),
        append(64, 64, 10_000, false, false),
        append(16, 16, 1_000_000, false, false),
        append(64, 64, 100, true, false),
        append(64, 64, 10_000, true, false),
        append(64, 64, 100, false, true),
        append(64, 64, 100, true, true),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn names(line: &[&str]) -> Vec<String> {
        let arguments = Arguments::parse_from([&["http"], line].concat());
        rows(&arguments).unwrap().into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn names_are_unique_and_families_and_names_select() {
        let all = names(&["--growth", "1,10", "--many-streams", "1000"]);
        let mut unique = all.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
        assert_eq!(names(&["--workloads", "head,mixed"]), ["head-c64", "mixed"]);
        assert_eq!(names(&["--workloads", "fan-out-1x1000-w64"]), ["fan-out-1x1000-w64"]);
        let wrong = Arguments::parse_from(["http", "--workloads", "heads"]);
        assert_eq!(rows(&wrong).unwrap_err(), "--workloads: there is no heads; --list names all");
    }

    #[test]
    fn combinations_take_the_place_of_the_usual_appends() {
        let line =
            ["--workloads", "append", "--connections", "1,8", "--sizes", "100,1000", "--producers", "no,yes"];
        let all = names(&line);
        assert_eq!(all.len(), 8);
        assert_eq!(all[0], "append-c1-s1-100B");
        assert_eq!(all[7], "append-c8-s8-1kB-producers");
    }
}
