//! What holds for every command: help, errors, streams.

use std::io::Read;
use std::process::Stdio;

use crate::program::{command, fails, json_lines, ok, run};

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--help"][..], &["--version"], &["tree", "--help"], &["tokenizer", "train", "--help"]] {
        let ended = ok(args);
        assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{args:?}: {ended:?}");
        assert!(!ended.stdout.contains('\u{1b}'), "colours in a pipe: {args:?}");
    }
    assert!(ok(&["--version"]).stdout.starts_with("genus "));
}

#[test]
fn every_command_and_flag_is_documented() {
    fn walk(path: &mut Vec<String>) -> usize {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let help = ok(&args).stdout;
        let section = |title: &'static str| {
            help.lines()
                .skip_while(move |l| *l != title)
                .skip(1)
                .take_while(|l| l.starts_with(' ') || l.is_empty())
                .map(str::to_owned)
        };
        for line in section("Options:").filter(|l| l.trim_start().starts_with("--")) {
            assert!(line.split_whitespace().count() > 1 || help.contains(&format!("{line}\n  ")), "{path:?}: {line}");
        }
        let commands: Vec<String> = section("Commands:")
            .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
            .filter_map(|l| {
                let mut words = l.split_whitespace();
                let name = words.next()?.to_owned();
                assert!(words.next().is_some(), "{path:?}: {name} has no documentation");
                Some(name)
            })
            .filter(|name| name != "help")
            .collect();
        let mut count = 1;
        for name in commands {
            path.push(name);
            count += walk(path);
            path.pop();
        }
        count
    }
    assert!(walk(&mut Vec::new()) > 5);
}

#[test]
fn unknown_flags_and_commands_are_usage_errors_with_a_suggestion() {
    fails(2, &["tokenizer", "encode", "bytes", "--txet", "a"], &["--txet", "--text"]);
    fails(2, &["tre"], &["tre", "tree"]);
    fails(2, &["tree", "--device", "gpu"], &["--device", "`gpu`", "cuda:N"]);
    assert_eq!(run(&[]).code, Some(2));
}

#[test]
fn what_this_build_cannot_do_is_said() {
    fails(1, &["tokenizer", "encode", "bytes", "--text", "a", "--device", "cuda"], &["cuda"]);
    fails(2, &["tokenizer", "encode", "bytes", "--text", "a", "--precision", "f16"], &["f16", "f32", "bf16"]);
    fails(1, &["tokenizer", "encode", "bytes", "--text", "a", "--threads", "0"], &["--threads 0", "at least 1"]);
}

#[test]
fn the_tree_lists_the_published_sizes() {
    let text = ok(&["tree"]).stdout;
    for word in ["transformer", "gpt2-xl", "1,557,611,200", "bert-base-uncased", "110,106,428"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    let lines = json_lines(&ok(&["tree", "--json"]).stdout);
    assert_eq!(lines.len(), 1);
    let members = lines[0]["members"].as_array().expect("members");
    let gpt2 = members.iter().find(|m| m["name"] == "gpt2").expect("gpt2");
    assert_eq!(gpt2["ancestor"], "gpt");
    assert_eq!(gpt2["presets"][0]["parameters"], 124_439_808);
}

#[test]
fn a_closed_pipe_is_silent() {
    let mut child =
        command(&["tree"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("standard error").read_to_string(&mut stderr).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(0));
    assert_eq!(stderr, "");
}
