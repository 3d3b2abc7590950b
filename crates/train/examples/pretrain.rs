//! Trains from a TOML file of [`genus_train::TrainConfig`]: `pretrain CONFIG.toml RUN`, or `pretrain --resume RUN`.

use genus_train::{CheckpointInfo, Evaluation, Hooks, RunOptions, StartInfo, StepInfo, TrainConfig, resume, train};

struct Print;

impl Hooks for Print {
    fn on_start(&mut self, s: &StartInfo) {
        println!("{} parameters, {} training tokens, held out: {:?}", s.parameters, s.train_tokens, s.dev_tokens);
    }
    fn on_step(&mut self, s: &StepInfo) {
        if s.step == 1 || s.step.is_multiple_of(20) {
            println!(
                "step {}/{}  loss {:.4}  lr {:.2e}  norm {:.2}  {:.0} tokens/s  {:.1} GFLOP/s  data {:.2} %  {} MB  {:.0} s left",
                s.step,
                s.total,
                s.loss,
                s.lr,
                s.grad_norm,
                s.tokens_per_second,
                s.flops_per_second / 1e9,
                100.0 * s.data_wait,
                s.memory.unwrap_or(0) / 1_000_000,
                s.eta_seconds
            );
        }
    }
    fn on_eval(&mut self, step: u64, e: &Evaluation) {
        println!("step {step}: {e:?}");
    }
    fn on_checkpoint(&mut self, c: &CheckpointInfo) {
        println!("{} in {:.2} s", c.folder.display(), c.seconds);
    }
    fn on_message(&mut self, message: &str) {
        println!("{message}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, run] = &args[..] else { return Err("usage: pretrain CONFIG.toml RUN | pretrain --resume RUN".into()) };
    let options = RunOptions { output: run.into(), ..RunOptions::default() };
    let outcome = match first.as_str() {
        "--resume" => resume(None, &options, &mut Print)?,
        config => train(&TrainConfig::read(config.as_ref())?, &options, &mut Print)?,
    };
    println!("{outcome:?}");
    Ok(())
}
