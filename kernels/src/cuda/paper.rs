//! A GPU on paper: it says what it is and does nothing, so that what fits can be planned where there is none.

use super::compile::{Image, Job};
use super::driver::*;
use super::error::{CudaError, Result};
use std::ptr::NonNull;

pub struct Paper {
    info: DeviceInfo,
}

impl Paper {
    pub fn new(info: DeviceInfo) -> Self {
        Self { info }
    }
}

fn refused<T>(call: &'static str) -> Result<T> {
    Err(CudaError::Call { call, reason: "this device is on paper only".to_string() })
}

impl Driver for Paper {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, _: &Job) -> Result<Image> {
        refused("compile")
    }

    fn compiles_whole_sources(&self) -> bool {
        false
    }

    fn load(&self, _: &Image) -> Result<Vec<Function>> {
        refused("load")
    }

    fn allocate(&self, _: u64) -> Result<DevicePtr> {
        refused("allocate")
    }

    fn allocate_pinned(&self, _: usize) -> Result<NonNull<u8>> {
        refused("allocate_pinned")
    }

    fn name_region(&self, _: DevicePtr, _: u64, _: &str) {}

    fn forget_region(&self, _: DevicePtr) {}

    /// Every device has one, whatever it is for.
    fn new_stream(&self) -> Result<Stream> {
        Ok(Stream(0))
    }

    fn new_event(&self) -> Result<Event> {
        refused("new_event")
    }

    fn record(&self, _: Event, _: Stream) -> Result<()> {
        refused("record")
    }

    fn wait(&self, _: Stream, _: Event) -> Result<()> {
        refused("wait")
    }

    fn synchronize(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn finish(&self, _: Event) -> Result<()> {
        refused("finish")
    }

    fn is_done(&self, _: Event) -> Result<bool> {
        refused("is_done")
    }

    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f32> {
        refused("elapsed_ms")
    }

    unsafe fn upload(&self, _: Stream, _: DevicePtr, _: *const u8, _: usize) -> Result<()> {
        refused("upload")
    }

    unsafe fn download(&self, _: Stream, _: *mut u8, _: DevicePtr, _: usize) -> Result<()> {
        refused("download")
    }

    unsafe fn copy(&self, _: Stream, _: DevicePtr, _: DevicePtr, _: u64) -> Result<()> {
        refused("copy")
    }

    unsafe fn fill(&self, _: Stream, _: DevicePtr, _: u8, _: u64) -> Result<()> {
        refused("fill")
    }

    unsafe fn launch_clusters(&self, _: Stream, _: Function, _: &Clusters, _: &Args) -> Result<()> {
        refused("launch")
    }

    fn begin_capture(&self, _: Stream) -> Result<()> {
        refused("begin_capture")
    }

    fn end_capture(&self, _: Stream) -> Result<Graph> {
        refused("end_capture")
    }

    fn launch_graph(&self, _: Stream, _: Graph) -> Result<()> {
        refused("launch_graph")
    }
}
