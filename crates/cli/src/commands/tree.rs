//! `genus tree`: the family tree with each member's paper, differences and published sizes.

use std::io::Write;

use genus_models::{Family, families, lineage};
use serde_json::{Value, json};

use crate::Context;
use crate::progress::grouped;
use crate::report::json_line;

/// Show the family tree: ancestors, differences, published sizes with their exact numbers of parameters.
///
/// The sizes are presets: `genus train` and `genus bench` take their names.
#[derive(Debug, clap::Args)]
pub(crate) struct Tree {}

/// A place in the tree: a member, or a forebear that has no file here.
struct Node {
    name: &'static str,
    paper: &'static str,
    ancestor: Option<&'static str>,
    member: Option<&'static Family>,
}

impl Tree {
    pub(crate) fn run(self, context: &Context) -> anyhow::Result<()> {
        let nodes = nodes();
        if context.json {
            return json_line(&as_json(&nodes)?);
        }
        let mut text = String::new();
        for root in nodes.iter().filter(|n| n.ancestor.is_none_or(|a| nodes.iter().all(|m| m.name != a))) {
            draw(&nodes, root, "", "", &mut text)?;
        }
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

fn nodes() -> Vec<Node> {
    let forebears = lineage().iter().filter(|l| families().iter().all(|f| f.name != l.name)).map(|l| Node {
        name: l.name,
        paper: l.paper,
        ancestor: l.ancestor,
        member: None,
    });
    let members =
        families().iter().map(|f| Node { name: f.name, paper: f.paper, ancestor: Some(f.ancestor), member: Some(f) });
    forebears.chain(members).collect()
}

/// Draws `node` and all below it. `first` precedes its own line, `rest` every further one.
fn draw(nodes: &[Node], node: &Node, first: &str, rest: &str, out: &mut String) -> anyhow::Result<()> {
    out.push_str(&format!("{first}\x1b[1m{}\x1b[0m  \x1b[2m{}\x1b[0m\n", node.name, node.paper));
    let children: Vec<&Node> = nodes.iter().filter(|n| n.ancestor == Some(node.name)).collect();
    let bar = if children.is_empty() { "   " } else { "│  " };
    if let Some(family) = node.member {
        for difference in family.differences {
            out.push_str(&format!("{rest}{bar}≠ {difference}\n"));
        }
        for deviation in family.deviations {
            out.push_str(&format!("{rest}{bar}deviates: {deviation}\n"));
        }
        let width = family.presets.iter().map(|p| p.name.len()).max().unwrap_or(0);
        for preset in family.presets {
            let spec = (preset.spec)();
            let count = grouped(family.count(&spec, family.default_task())?);
            out.push_str(&format!(
                "{rest}{bar}• {:width$}  {count:>13} parameters   {} layers, d_model {}, {} heads, context {}, vocabulary {}\n",
                preset.name,
                spec.n_layers,
                spec.d_model,
                spec.n_heads,
                spec.n_ctx,
                grouped(spec.vocab_size as u64),
            ));
        }
    }
    for (i, child) in children.iter().enumerate() {
        let (first, below) = if i + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(nodes, child, &format!("{rest}{first}"), &format!("{rest}{below}"), out)?;
    }
    Ok(())
}

fn as_json(nodes: &[Node]) -> anyhow::Result<Value> {
    let mut out = Vec::new();
    for node in nodes {
        let mut object = json!({"name": node.name, "paper": node.paper, "ancestor": node.ancestor});
        if let Some(family) = node.member {
            let mut presets = Vec::new();
            for preset in family.presets {
                let spec = (preset.spec)();
                presets.push(json!({
                    "name": preset.name,
                    "parameters": family.count(&spec, family.default_task())?,
                    "n_layers": spec.n_layers,
                    "d_model": spec.d_model,
                    "n_heads": spec.n_heads,
                    "d_ff": spec.d_ff,
                    "n_ctx": spec.n_ctx,
                    "vocab_size": spec.vocab_size,
                }));
            }
            object["model_type"] = family.model_type.into();
            object["differences"] = family.differences.into();
            object["deviations"] = family.deviations.into();
            object["tasks"] = family.tasks.iter().map(|(task, _)| task.name()).collect();
            object["presets"] = presets.into();
        }
        out.push(object);
    }
    Ok(json!({"members": out}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_hangs_in_the_tree() {
        let nodes = nodes();
        let mut text = String::new();
        for root in nodes.iter().filter(|n| n.ancestor.is_none()) {
            draw(&nodes, root, "", "", &mut text).unwrap();
        }
        for node in &nodes {
            assert!(text.contains(&format!("\x1b[1m{}\x1b[0m", node.name)), "{} hangs nowhere:\n{text}", node.name);
        }
        assert!(text.contains("124,439,808 parameters"), "{text}");
    }
}
