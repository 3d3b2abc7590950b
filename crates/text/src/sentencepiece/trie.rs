//! Which of many strings a text begins with.

/// Strings with numbers, looked up byte by byte.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// Byte and next node; those of a node lie together, in the order of bytes.
    edges: Vec<(u8, u32)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    value: Option<u32>,
    from: u32,
    to: u32,
}

impl Trie {
    /// From strings that differ.
    pub(super) fn new<'a>(strings: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut sorted: Vec<(&[u8], u32)> = strings.into_iter().map(|(s, v)| (s.as_bytes(), v)).collect();
        sorted.sort_unstable();
        let mut trie = Trie { nodes: vec![Node::default()], edges: Vec::new() };
        // Nodes whose strings are known, their depth with them.
        let mut open = vec![(0usize, 0..sorted.len(), 0usize)];
        while let Some((node, mut range, depth)) = open.pop() {
            if let Some((string, value)) = sorted.get(range.start).filter(|_| !range.is_empty())
                && string.len() == depth
            {
                trie.nodes[node].value = Some(*value);
                range.start += 1;
            }
            trie.nodes[node].from = trie.edges.len() as u32;
            while range.start < range.end {
                let byte = sorted[range.start].0[depth];
                let n = sorted[range.clone()].partition_point(|s| s.0[depth] == byte);
                trie.edges.push((byte, trie.nodes.len() as u32));
                open.push((trie.nodes.len(), range.start..range.start + n, depth + 1));
                trie.nodes.push(Node::default());
                range.start += n;
            }
            trie.nodes[node].to = trie.edges.len() as u32;
        }
        trie
    }

    /// The strings that `text` begins with, shortest first: their lengths and numbers.
    pub(super) fn prefixes<'t>(&'t self, text: &'t [u8]) -> impl Iterator<Item = (usize, u32)> + 't {
        let (mut node, mut at) = (self.nodes.first().copied().unwrap_or_default(), 0);
        std::iter::from_fn(move || {
            loop {
                let byte = *text.get(at)?;
                let edges = &self.edges[node.from as usize..node.to as usize];
                let i = edges.binary_search_by_key(&byte, |e| e.0).ok()?;
                node = self.nodes[edges[i].1 as usize];
                at += 1;
                if let Some(value) = node.value {
                    return Some((at, value));
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_a_text() {
        let trie = Trie::new([("ab", 1), ("a", 0), ("abcd", 2), ("ä", 3), ("b", 4)]);
        let found = |text: &str| trie.prefixes(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcx"), [(1, 0), (2, 1)]);
        assert_eq!(found("abcd"), [(1, 0), (2, 1), (4, 2)]);
        assert_eq!(found("äb"), [(2, 3)]);
        assert!(found("x").is_empty() && found("").is_empty());
        assert_eq!(Trie::default().prefixes(b"a").count(), 0);
    }
}
