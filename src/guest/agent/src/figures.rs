//! What the host likes to know of the machine, from proc(5), as far as that can be read.

use crate::json::Json;
use crate::proc::Proc;
use crate::worker::Figures;

pub fn memory(proc: &Proc) -> Figures {
    let meminfo = proc.read_text("meminfo");
    vec![("total_kib", kib(&meminfo, "MemTotal:")), ("available_kib", kib(&meminfo, "MemAvailable:"))]
}

fn kib(meminfo: &str, name: &str) -> Json {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    Json::Int(line.and_then(|it| it.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0))
}

pub fn load(proc: &Proc) -> Figures {
    let loadavg = proc.read_text("loadavg");
    let (averages, processes) = averages(&loadavg);
    let mut figures = memory(proc);
    figures.push(("load_milli", Json::List(averages.map(Json::Int).to_vec())));
    figures.push(("processes", Json::Int(processes)));
    figures
}

/// Averages in thousandths over one, five and fifteen minutes, and how many tasks there are: `0.20 0.18 0.12 1/80 11206`.
fn averages(loadavg: &str) -> ([i64; 3], i64) {
    let mut fields = loadavg.split_whitespace();
    let mut next = || fields.next().and_then(milli).unwrap_or(0);
    let averages = [next(), next(), next()];
    let tasks = fields.next().and_then(|it| it.split_once('/')).and_then(|(_, all)| all.parse().ok());
    (averages, tasks.unwrap_or(0))
}

fn milli(number: &str) -> Option<i64> {
    let (whole, part) = number.split_once('.')?;
    let part: i64 = format!("{part:0<3}").get(..3)?.parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loadavg() {
        assert_eq!(averages("0.20 1.18 12.05 1/80 11206\n"), ([200, 1_180, 12_050], 80));
        assert_eq!(averages(""), ([0; 3], 0));
        assert_eq!(averages("x 1. .5 6"), ([0, 1_000, 0], 0));
    }

    #[test]
    fn meminfo() {
        assert_eq!(kib("MemTotal:   123 kB\nMemFree: 1 kB\n", "MemTotal:"), Json::Int(123));
        assert_eq!(kib("", "MemTotal:"), Json::Int(0));
    }
}
