//! `genus average`: the mean of several checkpoints' weights.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use genus_checkpoint::{WriteOptions, atomic, state};
use genus_models::{LoadOptions, Model};
use serde_json::json;

use crate::Context;
use crate::commands::convert::{check_output, copy_side_files};
use crate::progress::Progress;
use crate::report::{Usage, json_line};
use crate::source::model_folder;

/// Write the mean of several models' weights, of a run's last checkpoints as a rule (Vaswani et al. 2017, section 6.1).
///
/// All of them must be of one member with the same dimensions. Configuration and tokenizer are the last one's.
#[derive(Debug, clap::Args)]
pub(crate) struct Average {
    /// Folders or hub ids.
    #[arg(value_name = "MODEL", required_unless_present = "run")]
    models: Vec<String>,
    /// Run folder whose checkpoints are averaged.
    #[arg(long, value_name = "RUN", conflicts_with = "models")]
    run: Option<PathBuf>,
    /// How many of the run's last checkpoints.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "run")]
    last: usize,
    /// Folder to write; it must not exist, or be empty.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

impl Average {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        context.global()?;
        let folders = match &self.run {
            Some(run) => self.checkpoints(run)?,
            None => self.models.iter().map(|m| model_folder(m)).collect::<anyhow::Result<_>>()?,
        };
        let (Some(newest), n) = (folders.last(), folders.len()) else {
            return Err(Usage("nothing to average: pass model folders, or --run RUN".into()).into());
        };
        for folder in &folders {
            check_output(folder, &self.output)?;
        }
        let mut progress = Progress::new("averaging", Some(n as u64));
        // Sums in f64: the mean of equal weights is that weight.
        let mean = load(newest)?;
        let mut sums: Vec<Vec<f64>> = Vec::new();
        for (i, folder) in folders.iter().enumerate() {
            let model = load(folder)?;
            if model.family().name != mean.family().name || model.spec() != mean.spec() || model.task() != mean.task() {
                bail!(
                    "{}: found another member, other dimensions or another task than in {}",
                    folder.display(),
                    newest.display()
                );
            }
            for (j, p) in model.params().iter().enumerate() {
                let values = genus_ops::to_vec(&p.tensor())?;
                match sums.get_mut(j) {
                    None => sums.push(values.into_iter().map(f64::from).collect()),
                    Some(sum) => sum.iter_mut().zip(values).for_each(|(s, v)| *s += f64::from(v)),
                }
            }
            progress.update(i as u64 + 1, "models");
        }
        for (p, sum) in mean.params().iter().zip(sums) {
            let values: Vec<f32> = sum.into_iter().map(|s| (s / n as f64) as f32).collect();
            p.set(genus_ops::Tensor::from_vec(values, p.dims(), &genus_ops::Device::Cpu)?)?;
        }
        atomic::atomic_folder(&self.output, |tmp| {
            copy_side_files(newest, tmp)?;
            mean.save(tmp, &WriteOptions::default()).map_err(|e| genus_checkpoint::Error::Argument {
                what: "model".into(),
                found: e.to_string(),
                expected: "no error".into(),
            })
        })?;
        progress.finish();
        if context.json {
            return json_line(&json!({"output": self.output, "averaged": folders}));
        }
        let mut out = anstream::stdout().lock();
        writeln!(out, "mean of {n} models:")?;
        folders.iter().try_for_each(|f| writeln!(out, "  {}", f.display()))?;
        writeln!(out, "written to {}", self.output.display())?;
        Ok(())
    }

    /// The run's last checkpoints, oldest first.
    fn checkpoints(&self, run: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut all = state::list_checkpoints(run)?;
        if all.len() < self.last || self.last == 0 {
            bail!(
                "{}: found {} checkpoint(s), expected at least --last {} (train with --keep-last {} or more)",
                run.display(),
                all.len(),
                self.last.max(1),
                self.last.max(1)
            );
        }
        Ok(all.split_off(all.len() - self.last).into_iter().map(|step| state::checkpoint_folder(run, step)).collect())
    }
}

fn load(folder: &Path) -> anyhow::Result<Model> {
    Ok(Model::load(folder, &LoadOptions::default())?.model)
}
