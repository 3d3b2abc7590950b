//! The border between candle's tensors and the kernels' slices.

#![allow(unsafe_code)]

use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};

/// True where the CPU kernels apply: f32 on the CPU.
pub(crate) fn on_kernel(t: &Tensor) -> bool {
    t.dtype() == DType::F32 && matches!(t.device(), Device::Cpu)
}

/// A vector whose elements are not initialised: for outputs that a kernel writes completely.
pub(crate) fn uninit(n: usize) -> Vec<f32> {
    let mut v = Vec::with_capacity(n);
    // SAFETY: the capacity is n, every bit pattern is a valid f32, and each caller hands the vector to a kernel that writes
    // all of it before anything reads it. Zeroing instead costs about 2 % of a training step.
    #[allow(clippy::uninit_vec)]
    unsafe {
        v.set_len(n)
    };
    v
}

/// A CPU tensor that takes over `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Reads a contiguous f32 CPU tensor as a slice.
pub fn with_slice<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let copy;
    let t = if t.is_contiguous() {
        t
    } else {
        copy = t.contiguous()?;
        &copy
    };
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(v)), Some((start, end))) => Ok(f(&v[start..end])),
        _ => Err(Error::DType { op: "read", found: format!("{:?}", t.dtype()), expected: "f32 on the CPU" }),
    }
}

/// Writes a contiguous f32 CPU tensor in place.
///
/// Every tensor that shares the storage sees the change: callers own what they pass.
pub fn with_slice_mut<R>(t: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    struct Write<F, R>(std::cell::RefCell<(Option<F>, Option<R>)>);
    impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Write<F, R> {
        fn name(&self) -> &'static str {
            "write"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let mut state = self.0.borrow_mut();
            match (storage, layout.contiguous_offsets(), state.0.take()) {
                (CpuStorage::F32(v), Some((start, end)), Some(f)) => {
                    state.1 = Some(f(&mut v[start..end]));
                    Ok(())
                }
                _ => candle_core::bail!("write: expected a contiguous f32 tensor"),
            }
        }
    }
    let op = Write(std::cell::RefCell::new((Some(f), None)));
    t.inplace_op1(&op)?;
    op.0.into_inner().1.ok_or(Error::NotRecorded)
}

/// Reads several f32 CPU tensors as slices.
pub(crate) fn with_slices<const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let owned: Vec<Tensor> = tensors.iter().map(|t| Ok(t.contiguous()?)).collect::<Result<_>>()?;
    let guards: Vec<_> = owned.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(v)), Some((start, end))) => *slice = &v[start..end],
            _ => return Err(Error::DType { op: "read", found: "other".into(), expected: "f32 on the CPU" }),
        }
    }
    Ok(f(slices))
}

/// A tensor's values as f32, whatever its element type and device.
pub fn to_vec(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// A scalar's value.
pub fn scalar(t: &Tensor) -> Result<f64> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?.iter().sum())
}

/// Row-major f32 data where each row may be a part of a longer one: a `[rows, cols]` view.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub ptr: *const f32,
    pub stride: usize,
}

// SAFETY: a view is only read, and the tensors it points into are kept alive (and unlocked for writing by nobody) by the
// operation that made it, for as long as its kernels run.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

/// Runs `f` on views of 2-D f32 CPU tensors with contiguous columns (narrowed columns of a wider tensor are such views).
pub(crate) fn with_rows<R>(tensors: &[&Tensor], f: impl FnOnce(&[Rows]) -> R) -> Result<R> {
    let owned: Vec<Tensor> = tensors
        .iter()
        .map(|t| {
            let ok = t.rank() == 2 && (t.stride()[1] == 1 || t.dim(1)? <= 1);
            Ok(if ok { (*t).clone() } else { t.contiguous()? })
        })
        .collect::<Result<_>>()?;
    let guards: Vec<_> = owned.iter().map(|t| t.storage_and_layout()).collect();
    let mut rows = Vec::with_capacity(tensors.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(CpuStorage::F32(v)) => {
                rows.push(Rows { ptr: v[layout.start_offset().min(v.len())..].as_ptr(), stride: layout.stride()[0] })
            }
            _ => return Err(Error::DType { op: "read", found: "other".into(), expected: "f32 on the CPU" }),
        }
    }
    Ok(f(&rows))
}

/// A raw pointer that may cross to the pool's threads.
#[derive(Clone, Copy)]
pub(crate) struct SendPtr(pub *mut f32);
// SAFETY: the kernels give each task a part of the memory that no other task of the same call touches.
unsafe impl Send for SendPtr {}
// SAFETY: as above.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    /// The pointer: a closure that calls this takes the whole value with it, not the bare pointer.
    pub fn ptr(self) -> *mut f32 {
        self.0
    }

    /// The mutable slice `[start, start + len)`.
    ///
    /// # Safety
    /// In bounds of the allocation, and no other live reference to that part.
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// `target += g`, in place, for contiguous f32 CPU tensors of one shape.
pub(crate) fn add_into(target: &Tensor, g: &Tensor) -> Result<()> {
    if target.dims() != g.dims() {
        return Err(Error::shape("gradient", "addend", g.dims(), format!("{:?}", target.dims())));
    }
    with_slice(g, |g| {
        with_slice_mut(target, |t| {
            let out = SendPtr(t.as_mut_ptr());
            crate::pool::run_chunks(g.len(), 1 << 16, |r| {
                // SAFETY: chunks are disjoint and both slices have the same length (same shape).
                let t = unsafe { out.slice(r.start, r.len()) };
                t.iter_mut().zip(&g[r]).for_each(|(t, g)| *t += g);
            });
        })
    })?
}
