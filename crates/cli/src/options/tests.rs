use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use super::{Args, Group, Layers, OptionError, Options};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Colour {
    Red,
    DarkBlue,
}

options!(
    /// A group for the tests.
    Sample, SampleFlags {
        /// The thing to work on.
        #[arg(value_name = "THING")]
        place thing: String,
        /// Number of steps.
        ///
        /// More is better.
        value n_steps: u64 = 100,
        /// Peak rate.
        value rate: f64 = 6e-4,
        /// The colour.
        value colour: Colour = Colour::Red,
        /// Where to write.
        maybe output: PathBuf,
        /// Input files.
        list data: PathBuf,
        /// Take the likeliest.
        switch greedy,
    }
);

#[derive(Debug, Parser)]
struct App {
    #[command(flatten)]
    sample: Args<Sample>,
}

fn layers(file: &str, flags: &[&str]) -> Result<Layers, OptionError> {
    let app = App::try_parse_from(std::iter::once(&"app").chain(flags)).expect("flags that parse");
    let mut layers = Layers::new();
    layers.add::<Sample>("defaults", &Sample::defaults())?;
    layers.text(Path::new("run.toml"), file, &[Group::of::<Sample>()])?;
    layers.add::<Sample>("command line", &app.sample.0)?;
    Ok(layers)
}

fn message(file: &str) -> String {
    layers(file, &[]).expect_err("an error").to_string()
}

#[test]
fn defaults_then_file_then_flags() {
    let file = "n-steps = 7\nrate = 1\ncolour = \"dark-blue\"\ngreedy = true\ndata = \"one.txt\"\n";
    let sample: Sample = layers(file, &["gpt2", "--n-steps", "9", "--greedy=false"]).unwrap().resolve().unwrap();
    assert_eq!(
        sample,
        Sample {
            thing: Some("gpt2".into()),
            n_steps: 9,
            rate: 1.0,
            colour: Colour::DarkBlue,
            output: None,
            data: vec!["one.txt".into()],
            greedy: false
        }
    );
    let sample: Sample = layers("", &[]).unwrap().resolve().unwrap();
    assert_eq!((sample.n_steps, sample.rate, sample.greedy, sample.data), (100, 6e-4, false, vec![]));
}

#[test]
fn lists_take_several_values_and_repeat() {
    let sample: Sample = layers("", &["--data", "a", "b", "--data", "c"]).unwrap().resolve().unwrap();
    assert_eq!(sample.data, ["a", "b", "c"].map(PathBuf::from));
}

#[test]
fn the_effective_configuration_reads_back_to_itself() {
    let first = layers("data = ['a \"b\"', 'c']\n", &["--rate", "1e-5", "--output", "out"]).unwrap();
    let text = first.to_toml(&[Group::of::<Sample>()]);
    assert!(text.contains("# Number of steps.\nn-steps = 100\n"), "{text}");
    assert!(!text.contains("More is better"), "{text}");
    let second = layers(&text, &[]).unwrap();
    assert_eq!(first.resolve::<Sample>().unwrap(), second.resolve::<Sample>().unwrap());
}

#[test]
fn underscores_are_accepted() {
    let sample: Sample = layers("n_steps = 3\n", &[]).unwrap().resolve().unwrap();
    assert_eq!(sample.n_steps, 3);
}

#[test]
fn a_misspelt_key_names_file_line_and_the_nearest() {
    assert_eq!(message("rate = 1\n\nn-stesp = 3\n"), "run.toml:3: unknown key `n-stesp`; did you mean `n-steps`?");
    assert!(message("zzz = 3\n").starts_with("run.toml:1: unknown key `zzz`; the keys are"));
}

#[test]
fn a_wrong_value_names_key_found_and_expected() {
    assert_eq!(
        message("n-steps = \"ten\"\n"),
        "run.toml:1: key `n-steps`: found string \"ten\", expected a whole number of at least 0"
    );
    assert_eq!(
        message("n-steps = -1\n"),
        "run.toml:1: key `n-steps`: found integer `-1`, expected a whole number of at least 0"
    );
    assert_eq!(message("greedy = 1\n"), "run.toml:1: key `greedy`: found integer `1`, expected true or false");
    let colour = message("colour = \"green\"\n");
    assert!(colour.contains("`green`") && colour.contains("`dark-blue`"), "{colour}");
    assert!(message("n-steps = \n").starts_with("run.toml is not valid TOML"));
}

#[test]
fn a_missing_file_is_named() {
    let mut layers = Layers::new();
    let error = layers.file(Path::new("no/such.toml"), &[Group::of::<Sample>()]).unwrap_err();
    assert!(error.to_string().contains("no/such.toml"));
}

#[test]
fn help_shows_documentation_and_default() {
    let help = App::command().term_width(0).render_help().to_string();
    assert!(help.contains("Number of steps [default: 100]"), "{help}");
    assert!(help.contains("Peak rate [default: 6e-4]"), "{help}");
    assert!(help.contains("The colour [default: red]"), "{help}");
}
