//! `perilune bench-engine` as a process, with the embedded model.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn bench_engine(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perilune"));
    command.args(["bench-engine", "--seconds", "0", "--threads", "2"]).args(more);
    command
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_kind_of_job_is_timed_and_says_what_the_model_said() {
    let jobs = "prefill:33,decode:1@17,decode:3@17,logprobs:9";
    let output = bench_engine(&["--json", "--job", jobs]).output().expect("the binary starts");
    let [about, prefill, alone, together, logprobs] = &lines(&output)[..] else { panic!("{output:?}") };
    assert!(about["load_seconds"].as_f64().is_some_and(|s| s > 0.0), "{about}");
    for (result, tokens) in [(prefill, 33), (alone, 32), (together, 96), (logprobs, 9)] {
        assert_eq!(result["tokens_per_run"], tokens, "{result}");
        assert!(result["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
        assert!(result["peak_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{result}");
        assert_eq!(result["seconds"].as_array().map(Vec::len), Some(1), "{result}");
    }
    assert_eq!(prefill["tokens"].as_array().map(Vec::len), Some(1));
    assert_eq!(logprobs["logprobs"].as_array().map(Vec::len), Some(8));
    // In company a sequence says what it says alone.
    let first: Vec<&Value> = together["tokens"].as_array().expect("tokens").iter().step_by(3).collect();
    assert_eq!(first, alone["tokens"].as_array().expect("tokens").iter().collect::<Vec<_>>());
}

#[test]
fn prompts_longer_than_a_step_are_read_in_chunks() {
    let said = |more: &[&str]| {
        let output =
            bench_engine(more).args(["--json", "--job", "prefill:33,decode:1@17,decode:2@17"]).output();
        let lines = lines(&output.expect("the binary starts"));
        lines[1..].iter().map(|result| result["tokens"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(said(&["--max-num-seqs", "3", "--max-num-batched-tokens", "7"]), said(&[]));
}

#[test]
fn jobs_come_from_standard_input() {
    let mut command = bench_engine(&["--json", "--job", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(b"prefill:5\n\nprefill:6\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let jobs: Vec<Value> = lines(&output).iter().skip(1).map(|line| line["job"].clone()).collect();
    assert_eq!(jobs, ["prefill:5", "prefill:6"]);
}

#[test]
fn what_cannot_be_run_is_refused_with_the_reason() {
    let cases: [(&[&str], &str); 4] = [
        (&["--job", "speed:5"], "not a job such as prefill:512"),
        (&["--job", "prefill:100", "--max-model-len", "64"], "--max-model-len 64"),
        (&["--job", "decode:9@4", "--max-num-seqs", "2"], "--max-num-seqs 2"),
        (&["--seconds=-1"], "number of seconds from 0 to 3600"),
    ];
    for (flags, reason) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_perilune")).arg("bench-engine").args(flags).output();
        let output = output.expect("the binary starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{flags:?}: {said}");
    }
}
