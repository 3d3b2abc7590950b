//! What the readers of configurations share: customary defaults, names of activations, and checks of fields.

use crate::{Error, Result};
use genus_checkpoint::config::JsonFile;
use genus_ops::Activation;

/// Hugging Face's customary defaults, for fields that older files lack.
pub(crate) mod default {
    pub(crate) fn gelu_new() -> String {
        "gelu_new".into()
    }
    pub(crate) fn gelu() -> String {
        "gelu".into()
    }
    pub(crate) fn absolute() -> String {
        "absolute".into()
    }
    pub(crate) fn tenth() -> f32 {
        0.1
    }
    pub(crate) fn one() -> usize {
        1
    }
    pub(crate) fn two() -> usize {
        2
    }
    pub(crate) fn embedding() -> usize {
        128
    }
    pub(crate) fn window() -> usize {
        256
    }
    pub(crate) fn epsilon_5() -> f64 {
        1e-5
    }
    pub(crate) fn epsilon_12() -> f64 {
        1e-12
    }
    pub(crate) fn std_dev() -> f64 {
        0.02
    }
    pub(crate) fn yes() -> bool {
        true
    }
}

/// Hugging Face's names of activations.
pub(crate) fn activation(file: &JsonFile, field: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "relu" => Activation::Relu,
        "tanh" => Activation::Tanh,
        "silu" | "swish" => Activation::Silu,
        _ => return Err(file.field_error(field, "gelu_new, gelu_pytorch_tanh, gelu, relu, tanh or silu").into()),
    })
}

pub(crate) fn activation_name(a: Activation) -> &'static str {
    match a {
        Activation::GeluTanh => "gelu_new",
        Activation::GeluErf => "gelu",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh",
        Activation::Silu => "silu",
        Activation::Identity => "linear",
    }
}

/// The width of a head, or an error that names the field.
pub(crate) fn d_head(file: &JsonFile, field: &str, d_model: usize, n_heads: usize, width_field: &str) -> Result<usize> {
    if n_heads == 0 || d_model == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(file.field_error(field, format!("a positive divisor of {width_field} = {d_model}")).into());
    }
    Ok(d_model / n_heads)
}

/// Checks that a field has its only supported value.
pub(crate) fn only(file: &JsonFile, field: &str, ok: bool, expected: &str) -> Result<()> {
    if ok {
        Ok(())
    } else {
        Err(Error::Checkpoint(file.field_error(field, format!("{expected} (no other value is supported)"))))
    }
}
