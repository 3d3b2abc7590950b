//! The stack machine, cut down to what tensor files need.
//!
//! Values live in one list and refer to each other by number, so that neither cycles nor depth in a hostile file matter.
//! Every instruction makes at most one value, counts are bounded by the bytes of the pickle, and no name is ever looked
//! up anywhere but in [`Global::find`].

use std::collections::HashMap;
use std::path::Path;

use crate::error::shorten;
use crate::{Dtype, Error, Result};

/// Most values that a pickle may build (a state dict needs some 20 a tensor).
const MAX_NODES: usize = 4_000_000;
/// Most dimensions of a tensor, as in torch.
const MAX_RANK: usize = 64;

/// A harmless name that a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    Size,
    /// `torch.float32` and its like, `torch.device`: carried along, not used.
    Opaque,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "device" | "float32" | "float16" | "bfloat16" | "float64" | "int64" | "int32" | "bool") => {
                Global::Opaque
            }
            ("torch" | "torch.cuda", storage) => Global::Storage(match storage {
                "DoubleStorage" => Dtype::F64,
                "FloatStorage" => Dtype::F32,
                "HalfStorage" => Dtype::F16,
                "BFloat16Storage" => Dtype::BF16,
                "LongStorage" => Dtype::I64,
                "IntStorage" => Dtype::I32,
                "ShortStorage" => Dtype::I16,
                "CharStorage" => Dtype::I8,
                "ByteStorage" => Dtype::U8,
                "BoolStorage" => Dtype::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// Memory that tensors share, by its key in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) elements: usize,
}

/// A tensor as a view of a storage, in elements.
#[derive(Debug, Clone)]
pub(super) struct TensorRef {
    pub(super) storage: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Str(String),
    Tuple(Vec<u32>),
    List(Vec<u32>),
    Dict(Vec<(u32, u32)>),
    Global(Global),
    Storage(usize),
    Tensor(Box<TensorRef>),
    /// Something that is carried along and not looked into: floats, bytes, long integers, devices.
    Opaque,
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) => "an integer",
            Node::Str(_) => "text",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a type or function",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            Node::Opaque => "another value",
        }
    }
}

/// Runs pickles of one file.
pub(super) struct Machine<'f> {
    file: &'f Path,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    by_key: HashMap<String, usize>,
}

/// One run's state.
struct Run<'b> {
    bytes: &'b [u8],
    at: usize,
    stack: Vec<u32>,
    marks: Vec<usize>,
    memo: HashMap<u32, u32>,
}

impl<'f> Machine<'f> {
    pub(super) fn new(file: &'f Path) -> Self {
        Machine { file, nodes: Vec::new(), storages: Vec::new(), by_key: HashMap::new() }
    }

    /// The value with that number, which this machine gave out.
    pub(super) fn node(&self, id: u32) -> &Node {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    pub(super) fn storages(&self) -> &[Storage] {
        &self.storages
    }

    /// The value under a text key of a dict.
    pub(super) fn dict_get(&self, dict: u32, key: &str) -> Option<u32> {
        let Node::Dict(items) = self.node(dict) else { return None };
        items.iter().rev().find(|(k, _)| matches!(self.node(*k), Node::Str(s) if s == key)).map(|(_, v)| *v)
    }

    fn bad(&self, at: usize, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::malformed(self.file, format!("pickle, byte {at}"), found, expected)
    }

    /// Run one pickle; its result and the number of bytes it took.
    pub(super) fn run(&mut self, bytes: &[u8]) -> Result<(u32, usize)> {
        let mut run = Run { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            if self.nodes.len() > MAX_NODES {
                return Err(self.bad(run.at, "more values", format!("at most {MAX_NODES}")));
            }
            let at = run.at;
            let opcode = self.take::<1>(&mut run)?[0];
            if opcode == b'.' {
                let root = self.pop(&mut run)?;
                return Ok((root, run.at));
            }
            self.step(&mut run, opcode, at)?;
        }
    }

    fn step(&mut self, run: &mut Run<'_>, opcode: u8, at: usize) -> Result<()> {
        let node = match opcode {
            0x80 => {
                let [version] = self.take(run)?;
                if !(2..=5).contains(&version) {
                    return Err(self.bad(at, format!("protocol {version}"), "2 to 5"));
                }
                return Ok(());
            }
            0x95 => return self.take::<8>(run).map(drop), // FRAME
            b'(' => {
                run.marks.push(run.stack.len());
                return Ok(());
            }
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.take::<1>(run)?[0])),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.take(run)?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.take(run)?))),
            0x8a => {
                let n = usize::from(self.take::<1>(run)?[0]);
                long(self.slice(run, n)?)
            }
            b'G' => {
                self.take::<8>(run)?;
                Node::Opaque
            }
            b'X' => {
                let n = u32::from_le_bytes(self.take(run)?) as usize;
                self.text(run, n)?
            }
            0x8c | b'U' => {
                let n = usize::from(self.take::<1>(run)?[0]);
                self.text(run, n)?
            }
            b'B' | b'T' => {
                let n = u32::from_le_bytes(self.take(run)?) as usize;
                self.slice(run, n)?;
                Node::Opaque
            }
            b'C' => {
                let n = usize::from(self.take::<1>(run)?[0]);
                self.slice(run, n)?;
                Node::Opaque
            }
            b')' => Node::Tuple(Vec::new()),
            b']' => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b't' => Node::Tuple(self.pop_mark(run)?),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let floor = run.marks.last().copied().unwrap_or(0);
                let Some(start) = run.stack.len().checked_sub(n).filter(|s| *s >= floor) else {
                    return Err(self.bad(at, "too few values on the stack", format!("{n} for a tuple")));
                };
                Node::Tuple(run.stack.split_off(start))
            }
            b'c' => {
                let (module, name) = (self.line(run)?, self.line(run)?);
                self.global(&module, &name)?
            }
            0x93 => {
                let (name, module) = (self.pop(run)?, self.pop(run)?);
                match (self.node(module), self.node(name)) {
                    (Node::Str(m), Node::Str(n)) => self.global(m, n)?,
                    _ => return Err(self.bad(at, "a name that is no text", "text")),
                }
            }
            b'Q' => {
                let id = self.pop(run)?;
                self.storage(at, id)?
            }
            b'R' => {
                let (args, function) = (self.pop(run)?, self.pop(run)?);
                let id = self.call(at, function, args)?;
                run.stack.push(id);
                return Ok(());
            }
            b'b' => {
                // The attributes of a state dict (`_metadata`) say nothing about tensors.
                self.pop(run)?;
                let target = self.top(run)?;
                if !matches!(self.node(target), Node::Dict(_)) {
                    return Err(self.bad(at, format!("attributes for {}", self.node(target).kind()), "for a dict"));
                }
                return Ok(());
            }
            b'a' => {
                let item = self.pop(run)?;
                return self.append(at, run, &[item]);
            }
            b'e' => {
                let items = self.pop_mark(run)?;
                return self.append(at, run, &items);
            }
            b's' => {
                let (value, key) = (self.pop(run)?, self.pop(run)?);
                return self.set(at, run, &[key, value]);
            }
            b'u' => {
                let items = self.pop_mark(run)?;
                return self.set(at, run, &items);
            }
            b'q' => {
                let slot = u32::from(self.take::<1>(run)?[0]);
                return self.put(run, slot);
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take(run)?);
                return self.put(run, slot);
            }
            0x94 => {
                let slot = u32::try_from(run.memo.len()).unwrap_or(u32::MAX);
                return self.put(run, slot);
            }
            b'h' => {
                let slot = u32::from(self.take::<1>(run)?[0]);
                return self.get(at, run, slot);
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take(run)?);
                return self.get(at, run, slot);
            }
            _ => return Err(Error::ForbiddenOpcode { file: self.file.to_path_buf(), opcode, offset: at }),
        };
        let id = self.push(node);
        run.stack.push(id);
        Ok(())
    }

    fn push(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        // `run` bounds the number of values far below 2^32.
        (self.nodes.len() - 1) as u32
    }

    fn slice<'b>(&self, run: &mut Run<'b>, n: usize) -> Result<&'b [u8]> {
        let slice = run.bytes.get(run.at..).and_then(|b| b.get(..n)).ok_or_else(|| {
            let left = run.bytes.len().saturating_sub(run.at);
            self.bad(run.at, format!("{left} bytes left"), format!("{n} more (truncated?)"))
        })?;
        run.at += n;
        Ok(slice)
    }

    fn take<const N: usize>(&self, run: &mut Run<'_>) -> Result<[u8; N]> {
        let at = run.at;
        let slice = self.slice(run, N)?;
        slice.try_into().map_err(|_| self.bad(at, "fewer bytes", format!("{N}")))
    }

    fn text(&self, run: &mut Run<'_>, n: usize) -> Result<Node> {
        let at = run.at;
        let text = std::str::from_utf8(self.slice(run, n)?).map_err(|_| self.bad(at, "invalid UTF-8", "text"))?;
        Ok(Node::Str(text.to_string()))
    }

    fn line(&self, run: &mut Run<'_>) -> Result<String> {
        let at = run.at;
        let rest = run.bytes.get(at..).unwrap_or_default();
        let end =
            rest.iter().take(4096).position(|&b| b == b'\n').ok_or_else(|| self.bad(at, "no end of line", "one"))?;
        run.at += end + 1;
        let line = std::str::from_utf8(rest.get(..end).unwrap_or_default());
        line.map(String::from).map_err(|_| self.bad(at, "invalid UTF-8", "a name"))
    }

    fn pop(&self, run: &mut Run<'_>) -> Result<u32> {
        let floor = run.marks.last().copied().unwrap_or(0);
        if run.stack.len() <= floor {
            return Err(self.bad(run.at, "an empty stack", "a value"));
        }
        run.stack.pop().ok_or_else(|| self.bad(run.at, "an empty stack", "a value"))
    }

    fn top(&self, run: &Run<'_>) -> Result<u32> {
        run.stack.last().copied().ok_or_else(|| self.bad(run.at, "an empty stack", "a value"))
    }

    fn pop_mark(&self, run: &mut Run<'_>) -> Result<Vec<u32>> {
        let mark = run.marks.pop().filter(|m| *m <= run.stack.len());
        let mark = mark.ok_or_else(|| self.bad(run.at, "no mark on the stack", "a mark"))?;
        Ok(run.stack.split_off(mark))
    }

    fn put(&self, run: &mut Run<'_>, slot: u32) -> Result<()> {
        let top = self.top(run)?;
        run.memo.insert(slot, top);
        Ok(())
    }

    fn get(&self, at: usize, run: &mut Run<'_>, slot: u32) -> Result<()> {
        let id = run.memo.get(&slot).ok_or_else(|| self.bad(at, format!("memo {slot}"), "a memo set before"))?;
        run.stack.push(*id);
        Ok(())
    }

    fn append(&mut self, at: usize, run: &Run<'_>, items: &[u32]) -> Result<()> {
        let target = self.top(run)?;
        match self.nodes.get_mut(target as usize) {
            Some(Node::List(list)) => list.extend_from_slice(items),
            _ => return Err(self.bad(at, "an append to something else", "to a list")),
        }
        Ok(())
    }

    fn set(&mut self, at: usize, run: &Run<'_>, items: &[u32]) -> Result<()> {
        let target = self.top(run)?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.nodes.get_mut(target as usize) {
            Some(Node::Dict(dict)) if rest.is_empty() => dict.extend(pairs.iter().map(|[k, v]| (*k, *v))),
            _ => return Err(self.bad(at, "items for something else, or half an item", "keys and values for a dict")),
        }
        Ok(())
    }

    fn global(&self, module: &str, name: &str) -> Result<Node> {
        Global::find(module, name).map(Node::Global).ok_or_else(|| Error::ForbiddenGlobal {
            file: self.file.to_path_buf(),
            global: shorten(&format!("{module}.{name}"), 200),
        })
    }

    /// `("storage", type, key, location, elements)`, in older files with a sixth part that must be None.
    fn storage(&mut self, at: usize, id: u32) -> Result<Node> {
        let wrong = |m: &Self| m.bad(at, "a reference of another form", "('storage', type, key, location, elements)");
        let Node::Tuple(parts) = self.node(id) else { return Err(wrong(self)) };
        let [tag, kind, key, _location, elements, view @ ..] = parts.as_slice() else { return Err(wrong(self)) };
        let (Node::Str(tag), Node::Global(Global::Storage(dtype)), Node::Str(key), Node::Int(elements)) =
            (self.node(*tag), self.node(*kind), self.node(*key), self.node(*elements))
        else {
            return Err(wrong(self));
        };
        let plain = view.len() <= 1 && view.iter().all(|v| matches!(self.node(*v), Node::None));
        let (Ok(elements), true, true) = (usize::try_from(*elements), tag == "storage", plain) else {
            return Err(wrong(self));
        };
        let storage = Storage { key: key.clone(), dtype: *dtype, elements };
        if let Some(&known) = self.by_key.get(&storage.key) {
            if self.storages.get(known) != Some(&storage) {
                let found = format!("storage `{}` with another type or size than before", shorten(&storage.key, 80));
                return Err(self.bad(at, found, "the same"));
            }
            return Ok(Node::Storage(known));
        }
        let index = self.storages.len();
        self.by_key.insert(storage.key.clone(), index);
        self.storages.push(storage);
        Ok(Node::Storage(index))
    }

    /// The calls that make plain data; nothing else can be called.
    fn call(&mut self, at: usize, function: u32, args: u32) -> Result<u32> {
        let Node::Tuple(args) = self.node(args) else {
            return Err(self.bad(at, "arguments of another form", "a tuple"));
        };
        let Node::Global(function) = self.node(function) else {
            return Err(self.bad(at, format!("a call of {}", self.node(function).kind()), "of a known function"));
        };
        let function = *function;
        match (function, args.as_slice()) {
            (Global::OrderedDict, []) => Ok(self.push(Node::Dict(Vec::new()))),
            (Global::OrderedDict, [items]) => {
                let Node::List(items) = self.node(*items) else {
                    return Err(self.bad(at, "arguments of another form", "a list of pairs"));
                };
                let pair = |id: &u32| match self.node(*id) {
                    Node::List(p) | Node::Tuple(p) => p.as_slice().try_into().ok().map(|[k, v]: [u32; 2]| (k, v)),
                    _ => None,
                };
                let pairs = items.iter().map(pair).collect::<Option<Vec<_>>>();
                let pairs = pairs.ok_or_else(|| self.bad(at, "items of another form", "pairs"))?;
                Ok(self.push(Node::Dict(pairs)))
            }
            (Global::RebuildParameter, [data, ..]) if matches!(self.node(*data), Node::Tensor(_)) => Ok(*data),
            (Global::Size, [sizes]) if matches!(self.node(*sizes), Node::Tuple(_)) => Ok(*sizes),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let (Node::Storage(storage), Node::Int(offset)) = (self.node(*storage), self.node(*offset)) else {
                    return Err(self.bad(at, "a tensor of another form", "(storage, offset, sizes, strides)"));
                };
                let (Some(shape), Some(strides), Ok(offset)) =
                    (self.sizes(*shape), self.sizes(*strides), usize::try_from(*offset))
                else {
                    return Err(self.bad(at, "sizes of another form", "tuples of at most 64 sizes from 0"));
                };
                if shape.len() != strides.len() {
                    let found = format!("{} sizes and {} strides", shape.len(), strides.len());
                    return Err(self.bad(at, found, "as many of both"));
                }
                let tensor = TensorRef { storage: *storage, offset, shape, strides };
                Ok(self.push(Node::Tensor(Box::new(tensor))))
            }
            (Global::Opaque, _) => Ok(self.push(Node::Opaque)),
            _ => Err(self.bad(at, format!("a call of {function:?} with other arguments"), "those torch.save writes")),
        }
    }

    fn sizes(&self, id: u32) -> Option<Vec<usize>> {
        let Node::Tuple(parts) = self.node(id) else { return None };
        if parts.len() > MAX_RANK {
            return None;
        }
        let size = |id: &u32| match self.node(*id) {
            Node::Int(i) => usize::try_from(*i).ok(),
            _ => None,
        };
        parts.iter().map(size).collect()
    }
}

/// A little-endian two's complement integer of any length.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Opaque;
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    for (w, b) in wide.iter_mut().zip(bytes) {
        *w = *b;
    }
    Node::Int(i64::from_le_bytes(wide))
}
