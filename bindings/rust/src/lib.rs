//! Lets a WASI guest make spans, logs and metrics, in the trace of its container, by the
//! functions that containerd-shim-wazero provides to it.
//!
//! ```no_run
//! let _span = wazero_observe::span("handle request");
//! wazero_observe::tags("path:/");
//! wazero_observe::log(wazero_observe::Level::Info, "half way");
//! wazero_observe::metric("requests:1|c|#code:200");
//! ```
//!
//! Nothing here fails or waits. Without tracing the calls come to nothing, and so do those
//! beyond the bounds: see docs/telemetry.md, "Spans of a guest". Elsewhere than in a guest
//! (`wasm32`) nothing is done.
#![no_std]

#[cfg(target_arch = "wasm32")]
mod host {
    #[link(wasm_import_module = "dylibso:observe/api")]
    extern "C" {
        #[link_name = "span-enter"]
        pub fn span_enter(name: *const u8, length: usize);
        #[link_name = "span-exit"]
        pub fn span_exit();
        #[link_name = "span-tags"]
        pub fn span_tags(tags: *const u8, length: usize);
        #[link_name = "log"]
        pub fn log(level: u32, message: *const u8, length: usize);
        #[link_name = "metric"]
        pub fn metric(format: u32, message: *const u8, length: usize);
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod host {
    pub unsafe fn span_enter(_: *const u8, _: usize) {}
    pub unsafe fn span_exit() {}
    pub unsafe fn span_tags(_: *const u8, _: usize) {}
    pub unsafe fn log(_: u32, _: *const u8, _: usize) {}
    pub unsafe fn metric(_: u32, _: *const u8, _: usize) {}
}

/// How much a log matters, from the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Error = 1,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The one format of metrics there is.
const STATSD: u32 = 1;

/// A span, which ends when this is dropped.
#[must_use = "the span ends when this is dropped"]
#[derive(Debug)]
pub struct Span(());

/// Begins a span below the one that was begun last. Spans end in the reverse order of
/// their beginning.
pub fn span(name: &str) -> Span {
    unsafe { host::span_enter(name.as_ptr(), name.len()) };
    Span(())
}

impl Drop for Span {
    fn drop(&mut self) {
        unsafe { host::span_exit() };
    }
}

/// Sets attributes of the span that was begun last, or without one of the guest's run:
/// `KEY:VALUE` each, or `KEY` alone for true, separated by commas.
pub fn tags(tags: &str) {
    unsafe { host::span_tags(tags.as_ptr(), tags.len()) };
}

/// An event of the span that was begun last, or without one of the guest's run.
pub fn log(level: Level, message: &str) {
    unsafe { host::log(level as u32, message.as_ptr(), message.len()) };
}

/// Records a message of statsd: `NAME:VALUE|TYPE`, with `|@RATE` and `|#TAG:VALUE,...` behind
/// it if need be. `TYPE` is `c` for a counter, `g` for a gauge, `ms` and `h` for histograms.
pub fn metric(message: &str) {
    unsafe { host::metric(STATSD, message.as_ptr(), message.len()) };
}
