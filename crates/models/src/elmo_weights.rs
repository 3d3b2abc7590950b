//! ELMo as its authors published it: `options.json` and weights in HDF5, laid out as TensorFlow had them.
//!
//! Matrices are transposed; the cells' gates lie as input, new, forget, output there and as input, forget, new, output here, with 1
//! added to the forget gate's bias as TensorFlow does when it runs; and a highway's gate carries there what it replaces here, so
//! its weights change their sign. The output over words was not published.

use crate::elmo::ELMO;
use crate::{Model, Result, Task};
use genus_checkpoint::Hdf5;
use genus_checkpoint::config::JsonFile;
use genus_nn::{Characters, Init, Source, StackSpec, Vocabulary};
use genus_ops::{Device, Tensor};
use std::path::Path;

impl Model {
    /// The encoder of a published ELMo, for `vocab_size` tokens whose spellings are set afterwards.
    ///
    /// # Errors
    /// When a file cannot be read, or the weights are not those that the options describe.
    pub fn import_elmo(options: &Path, weights: &Path, vocab_size: usize) -> Result<Model> {
        let file = JsonFile::open(options)?;
        let mut spec = (ELMO.read)(&file)?;
        spec.set_vocab_size(vocab_size);
        let Vocabulary::Characters(characters) = spec.vocabulary.clone() else {
            unreachable!("an ELMo reads characters")
        };
        let mut source = Published { file: Hdf5::open(weights)?, spec: spec.clone(), characters };
        Model::from_source(&ELMO, spec, Task::Base, &mut source)
    }
}

struct Published {
    file: Hdf5,
    spec: StackSpec,
    characters: Characters,
}

/// `[a, b]` to `[b, a]`.
fn transposed(x: &[f32], a: usize, b: usize) -> Vec<f32> {
    (0..b).flat_map(|j| (0..a).map(move |i| x[i * b + j])).collect()
}

impl Published {
    fn read(&self, name: &str, shape: &[usize]) -> genus_nn::Result<Vec<f32>> {
        let failed =
            |e: genus_checkpoint::Error| genus_nn::Error::Parameter { name: name.to_owned(), reason: e.to_string() };
        self.file.f32(name, shape).map_err(failed)
    }

    /// The parameters of a layer of cells.
    fn cells(&self, direction: usize, layer: usize, part: &str) -> genus_nn::Result<Vec<f32>> {
        let (d, h) = (self.spec.d_model, self.spec.d_ff);
        let name = |what: &str| format!("RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/{what}");
        // Which of the file's gates stands at each place here.
        const GATES: [usize; 4] = [0, 2, 1, 3];
        match part {
            "projection.weight" => Ok(transposed(&self.read(&name("W_P_0"), &[h, d])?, h, d)),
            "input.bias" => {
                let b = self.read(&name("B"), &[4 * h])?;
                let open = |gate: usize| if gate == 2 { 1.0 } else { 0.0 };
                Ok(GATES.iter().flat_map(|&g| b[g * h..][..h].iter().map(move |x| x + open(g))).collect())
            }
            _ => {
                let w = self.read(&name("W_0"), &[2 * d, 4 * h])?;
                let first = if part == "input.weight" { 0 } else { d };
                let column = |g: usize, j: usize| (0..d).map(move |i| (first + i) * 4 * h + g * h + j);
                let places = GATES.iter().flat_map(|&g| (0..h).flat_map(move |j| column(g, j)));
                Ok(places.map(|at| w[at]).collect())
            }
        }
    }

    fn values(&self, name: &str, shape: &[usize]) -> genus_nn::Result<Vec<f32>> {
        let (own, direction) = match name.strip_prefix("backward.") {
            Some(rest) => (rest, 1),
            None => (name, 0),
        };
        let mut parts = own.splitn(3, '.');
        let (group, number, part) = (parts.next(), parts.next(), parts.next());
        let wide = self.characters.patterns();
        match (group, number, part) {
            (Some("layers"), Some(i), Some(part)) => self.cells(direction, i.parse().unwrap_or(usize::MAX), part),
            (_, Some("characters"), _) => self.read("char_embed", shape),
            (_, Some("filters"), Some(rest)) => {
                let (i, what) = rest.split_once('.').unwrap_or((rest, ""));
                if what == "bias" {
                    return self.read(&format!("CNN/b_cnn_{i}"), shape);
                }
                let (n, long) = (shape[0], shape[1]);
                let width = long / self.characters.d_character.max(1);
                let w = self.read(&format!("CNN/W_cnn_{i}"), &[1, width, self.characters.d_character, n])?;
                Ok(transposed(&w, long, n))
            }
            (_, Some("highways"), Some(rest)) => {
                let (i, what) = rest.split_once('.').unwrap_or((rest, ""));
                let negated = |x: Vec<f32>| x.into_iter().map(|x| -x).collect::<Vec<f32>>();
                if what == "bias" {
                    let (new, carry) = (format!("CNN_high_{i}/b_transform"), format!("CNN_high_{i}/b_carry"));
                    return Ok([self.read(&new, &[wide])?, negated(self.read(&carry, &[wide])?)].concat());
                }
                let (new, carry) = (format!("CNN_high_{i}/W_transform"), format!("CNN_high_{i}/W_carry"));
                let matrix =
                    |name: &str| Ok::<_, genus_nn::Error>(transposed(&self.read(name, &[wide, wide])?, wide, wide));
                Ok([matrix(&new)?, negated(matrix(&carry)?)].concat())
            }
            (_, Some("projection"), Some("bias")) => self.read("CNN_proj/b_proj", shape),
            (_, Some("projection"), _) => {
                let d = self.spec.d_model;
                Ok(transposed(&self.read("CNN_proj/W_proj", &[wide, d])?, wide, d))
            }
            // Set afterwards.
            _ => Ok(vec![0.0; shape.iter().product()]),
        }
    }
}

impl Source for Published {
    fn get(&mut self, name: &str, shape: &[usize], _: Init) -> genus_nn::Result<Tensor> {
        Ok(Tensor::from_vec(self.values(name, shape)?, shape, &Device::Cpu)?)
    }
}
