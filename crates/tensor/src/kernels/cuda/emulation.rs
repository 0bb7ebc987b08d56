//! A queue that runs the kernels on the CPU, compiled from their own sources by a C++ compiler (`emulator/emulator.cpp`),
//! and what it shows: each family against the operations of the CPU, launch by launch as on a GPU.
//!
//! It checks what CUDA does not: that a kernel exists, that each argument is what the kernel's parameter is (also whether it
//! is read or written), and, by a page that nobody may touch behind every array, that nothing is read or written beyond
//! its end. Memory begins as numbers that are none. Each test runs with the threads of a block in both orders and wants the
//! same bits: a missing barrier shows. What is not tested here is named in docs/cuda.md.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use super::{Argument, Memory, Queue, Stored, View};
use crate::error::Result;

mod tests;

/// As `Argument` in `emulator.cpp`.
#[repr(C)]
struct Raw {
    kind: i32,
    /// Of a table: how many numbers it has.
    element: i32,
    value: u64,
}

type Emulate = unsafe extern "C" fn(*const c_char, u32, u32, *const Raw, usize, c_int) -> *const c_char;

/// The emulator has one set of threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(super) struct Emulator {
    emulate: Emulate,
    reversed: bool,
}

/// An array whose end is the end of what may be touched.
pub(super) struct Array {
    mapping: *mut c_void,
    length: usize,
    start: usize,
    element: Stored,
    count: usize,
}

impl Emulator {
    /// The emulator with the threads of a block in both orders; `None`, and a line on standard error, where there is no
    /// C++ compiler.
    pub fn both() -> Option<[Self; 2]> {
        static COMPILED: OnceLock<Option<Emulate>> = OnceLock::new();
        let emulate = (*COMPILED.get_or_init(compile))?;
        Some([false, true].map(|reversed| Self { emulate, reversed }))
    }

    pub fn array<T: Copy>(&self, element: Stored, values: &[T]) -> Array {
        let array = Array::new(element, values.len());
        assert_eq!(size_of::<T>(), element.size());
        // SAFETY: as many elements of this size have just been made.
        unsafe { std::slice::from_raw_parts_mut(array.start as *mut T, values.len()) }.copy_from_slice(values);
        array
    }

    pub fn f32(&self, values: &[f32]) -> Array {
        self.array(Stored::F32, values)
    }

    /// `f32` or, rounded, `bf16`.
    pub fn stored(&self, element: Stored, values: &[f32]) -> Array {
        match element {
            Stored::Bf16 => self.array(element, &values.iter().copied().map(to_bf16).collect::<Vec<_>>()),
            _ => self.f32(values),
        }
    }
}

impl Array {
    fn new(element: Stored, count: usize) -> Self {
        let bytes = (count * element.size()).next_multiple_of(super::WIDEST_ACCESS);
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let usable = bytes.next_multiple_of(page);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: fresh memory, of which the last page is taken away again.
        let mapping = unsafe {
            let mapping = libc::mmap(std::ptr::null_mut(), usable + page, protection, flags, -1, 0);
            assert_ne!(mapping, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(mapping.byte_add(usable), page, libc::PROT_NONE), 0);
            std::ptr::write_bytes(mapping.cast::<u8>(), 0xff, usable);
            mapping
        };
        Self { mapping, length: usable + page, start: mapping as usize + usable - bytes, element, count }
    }

    pub fn read<T: Copy>(&self) -> Vec<T> {
        assert_eq!(size_of::<T>(), self.element.size());
        // SAFETY: so many elements of this size lie there.
        unsafe { std::slice::from_raw_parts(self.start as *const T, self.count) }.to_vec()
    }

    /// As `f32`.
    pub fn numbers(&self) -> Vec<f32> {
        match self.element {
            Stored::F32 => self.read(),
            Stored::Bf16 => self.read::<u16>().into_iter().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
            other => panic!("{other:?} are no numbers"),
        }
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and views do not outlive the array.
        unsafe { libc::munmap(self.mapping, self.length) };
    }
}

impl Memory for Array {
    fn view(&self) -> View<'_> {
        // SAFETY: so many elements lie there for as long as the array lives.
        unsafe { View::new(self.start as u64, self.element, self.count) }
    }
}

impl Queue for Emulator {
    type Memory = Array;

    fn allocate(&self, element: Stored, count: usize) -> Result<Array> {
        Ok(Array::new(element, count))
    }

    unsafe fn launch(&self, kernel: &str, [x, y]: [u32; 2], arguments: &[Argument]) -> Result<()> {
        let arguments: Vec<Raw> = arguments.iter().map(raw).collect();
        let name = CString::new(kernel).unwrap();
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the emulator checks the arguments; what kernels do with them is their caller's word.
        let complaint =
            unsafe { (self.emulate)(name.as_ptr(), x, y, arguments.as_ptr(), arguments.len(), self.reversed.into()) };
        if complaint.is_null() {
            return Ok(());
        }
        // SAFETY: a text that is good until the next call.
        let complaint = unsafe { CStr::from_ptr(complaint) }.to_string_lossy();
        Err(candle_core::Error::Msg(format!("{kernel}: {complaint}")).into())
    }
}

fn raw(argument: &Argument) -> Raw {
    let element = |view: View| match view.element() {
        Stored::F32 => 0,
        Stored::Bf16 => 1,
        Stored::U8 => 2,
        Stored::U32 => 3,
        Stored::I32 => 4,
    };
    let array = |kind, view: View| Raw { kind, element: element(view), value: view.address() };
    let number = |kind, value| Raw { kind, element: 5, value };
    match *argument {
        Argument::Read(view) | Argument::Maybe(Some(view)) => array(0, view),
        Argument::Maybe(None) => number(0, 0),
        Argument::Write(view) => array(1, view),
        Argument::Integer(value) => number(2, u64::from(value.cast_unsigned())),
        Argument::Natural(value) => number(3, value.into()),
        Argument::Single(value) => number(4, value.to_bits().into()),
        Argument::Double(value) => number(5, value.to_bits()),
        Argument::Table(numbers) => Raw { kind: 6, element: numbers.len() as i32, value: numbers.as_ptr() as u64 },
    }
}

/// To the nearest, of equally near ones to the even one.
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Compiles the emulator and loads it.
fn compile() -> Option<Emulate> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let folder = std::env::temp_dir().join(format!("tsbd-emulator-{}", std::process::id()));
    let (sources, library) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/emulator"), folder.join("emulator.so"));
    std::fs::create_dir_all(&folder).unwrap();
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-I"])
        .arg(&sources)
        .arg("-o")
        .arg(&library)
        .arg(sources.join("emulator.cpp"))
        .output();
    let emulate = match output {
        Err(error) => {
            // Past the test harness, which would keep it to itself.
            let line = format!("skipped: the CUDA kernels are not emulated: {compiler}: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
            Some(load(&library))
        }
    };
    std::fs::remove_dir_all(&folder).unwrap();
    emulate
}

fn load(library: &Path) -> Emulate {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a library without initialisers of note, never unloaded; `emulate` has the signature of the type.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{}", library.display());
        let symbol = libc::dlsym(handle, c"emulate".as_ptr());
        assert!(!symbol.is_null());
        std::mem::transmute::<*mut c_void, Emulate>(symbol)
    }
}
