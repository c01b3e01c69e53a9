//! The LoRA adapters that are served beside the base model, by name. Files are read on a blocking thread; the engine's thread takes what was
//! made of them between two steps.
//!
//! ```text
//!   load     the name is free ── a slot ── files are read and checked ── to the engine ── the name is served
//!   unload   the name is gone: 404 ── its sequences end ── out of the runner ── the slot is free
//! ```
//! A change that has begun goes on when its client hangs up.

mod folder;
mod options;

pub use folder::Root;
pub use options::{AdapterModule, AdapterOptions};

use crate::blocking::Lane;
use crate::engine_thread::{AdapterContent, AdapterHooks, AddError, EngineHandle, NewAdapter};
use crate::error::ApiError;
use crate::unix_time::unix_time;
use scheduler::AdapterId;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a loader made of an adapter's folder.
pub struct Prepared {
    pub content: AdapterContent,
    pub rank: usize,
    pub bytes: u64,
    /// Of what it was made of: equal adapters have equal ones.
    pub digest: [u8; 32],
}

/// Reads a folder and checks it against the model, on any thread. The message names the file, and the key or tensor.
pub type Prepare = Arc<dyn Fn(&Path) -> Result<Prepared, String> + Send + Sync>;

/// What a model that takes adapters comes with.
pub struct AdapterSupport<R> {
    pub prepare: Prepare,
    pub hooks: AdapterHooks<R>,
}

/// One that requests may name.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub id: AdapterId,
    pub path: PathBuf,
    /// As the operator gave it; `None`: the base under its first name.
    pub parent: Option<String>,
    pub created: u64,
    pub digest: [u8; 32],
}

/// One of the adapters that there may be.
type Slot = OwnedSemaphorePermit;

/// The names under which adapters are served, and how they change.
pub struct Adapters {
    engine: EngineHandle,
    /// `None`: the model was loaded without room for adapters.
    prepare: Option<Prepare>,
    slots: Arc<Semaphore>,
    num_slots: usize,
    /// `None`: requests may not load or unload.
    root: Option<Root>,
    /// Names of the base, which no adapter may have.
    base: Vec<String>,
    names: Mutex<Names>,
    next_id: AtomicU64,
    /// Reading is bound by the disk, and what is read is large.
    reads: Lane,
}

#[derive(Default)]
struct Names {
    served: BTreeMap<Arc<str>, (Adapter, Slot)>,
    /// Taken, and not served yet.
    coming: BTreeSet<Arc<str>>,
}

/// A name that nobody else can take.
struct Coming<'a> {
    adapters: &'a Adapters,
    name: Arc<str>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.adapters.names().coming.remove(&self.name);
    }
}

/// Where an adapter is, and what it is to be called.
#[derive(Debug, Clone)]
pub struct Load {
    pub name: String,
    pub folder: PathBuf,
    pub parent: Option<String>,
    /// May stand in for one of the same name.
    pub in_place: bool,
}

const NAME_LEN_MAX: usize = 256;

impl Adapters {
    /// `base` are the names of the base model.
    pub fn new(
        engine: EngineHandle,
        prepare: Option<Prepare>,
        base: Vec<String>,
        options: &AdapterOptions,
    ) -> Self {
        let num_slots = if prepare.is_some() { options.max_cpu_loras } else { 0 };
        Self {
            engine,
            prepare,
            slots: Arc::new(Semaphore::new(num_slots.min(Semaphore::MAX_PERMITS))),
            num_slots,
            root: options.root.clone(),
            base,
            names: Mutex::default(),
            next_id: AtomicU64::new(1),
            reads: Lane::new(2),
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().expect("no panic under the lock")
    }

    pub fn find(&self, name: &str) -> Option<Adapter> {
        self.names().served.get(name).map(|(adapter, _)| adapter.clone())
    }

    /// With their names, in the order in which they were loaded.
    pub fn list(&self) -> Vec<(Arc<str>, Adapter)> {
        let names = self.names();
        let mut list: Vec<_> =
            names.served.iter().map(|(name, (adapter, _))| (name.clone(), adapter.clone())).collect();
        list.sort_by_key(|(_, adapter)| adapter.id);
        list
    }

    /// Whether requests may load and unload, and from where.
    pub fn updating(&self) -> Result<&Root, ApiError> {
        self.root.as_ref().ok_or(ApiError::RouteOff { flag: "--enable-runtime-lora-updating" })
    }

    /// The folder that a request names.
    pub async fn folder(&self, path: String) -> Result<PathBuf, ApiError> {
        let root = self.updating()?.clone();
        self.reads.run(move |_| root.folder(&path)).await?
    }

    /// Resolves when requests may name it.
    pub async fn load(&self, load: Load) -> Result<(), ApiError> {
        let Load { name, folder, parent, in_place } = load;
        let prepare = self.prepare.clone().ok_or(ApiError::RouteOff { flag: "--enable-lora" })?;
        let name = self.check_name(&name)?;
        let coming = self.take_name(name.clone(), in_place)?;
        let slot = self.free_slot();
        if slot.is_none() && self.find(&name).is_none() {
            return Err(self.no_slot());
        }
        let path = folder.clone();
        let prepared = self.reads.run(move |_| prepare(&path)).await?;
        let Prepared { content, rank, bytes, digest } =
            prepared.map_err(|message| ApiError::invalid("lora_path", message))?;
        let slot = match slot {
            Some(slot) => slot,
            // In place of one of the same name, and in its slot.
            None => self.slot_of(&name).await.or_else(|| self.free_slot()).ok_or_else(|| self.no_slot())?,
        };
        let number = self.next_id.fetch_add(1, Relaxed);
        let id = AdapterId(NonZeroU64::new(number).expect("numbers begin at 1"));
        let new = NewAdapter { id, name: name.clone(), content };
        self.engine.add_adapter(new).await.map_err(|error| match error {
            AddError::Refused(message) => ApiError::invalid("lora_path", message),
            AddError::Stopped => ApiError::Draining,
        })?;
        tracing::info!(adapter = &*name, path = ?folder, rank, bytes, "loaded an adapter");
        let adapter = Adapter { id, path: folder, parent, created: unix_time(), digest };
        let old = self.names().served.insert(name, (adapter, slot));
        drop(coming);
        if let Some((old, _slot)) = old {
            self.engine.remove_adapter(old.id).await;
        }
        Ok(())
    }

    /// The name is free at once. Resolves when the last sequence of the adapter has ended and its memory is free. Requests that looked it up
    /// and did not reach the engine yet are told that it is gone.
    pub async fn unload(&self, name: &str) -> Result<(), ApiError> {
        match self.slot_of(name).await {
            Some(_slot) => {
                tracing::info!(adapter = name, "unloaded an adapter");
                Ok(())
            }
            // Controllers look for these words.
            None => Err(ApiError::AdapterNotFound {
                param: "lora_name",
                message: format!("The lora adapter '{name}' cannot be found."),
            }),
        }
    }

    fn free_slot(&self) -> Option<Slot> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// Unloads the adapter of a name, whose slot it was.
    async fn slot_of(&self, name: &str) -> Option<Slot> {
        let (adapter, slot) = self.names().served.remove(name)?;
        self.engine.remove_adapter(adapter.id).await;
        Some(slot)
    }

    fn no_slot(&self) -> ApiError {
        let message = format!(
            "{} adapters are loaded or leave when their requests have ended, as many as --max-loras, or --max-cpu-loras, allows; unload one first",
            self.num_slots
        );
        ApiError::Conflict { message }
    }

    fn check_name(&self, name: &str) -> Result<Arc<str>, ApiError> {
        if name.is_empty() {
            return Err(ApiError::invalid("lora_name", "is empty"));
        }
        if name.len() > NAME_LEN_MAX || name.chars().any(|c| c.is_control() || c == ',') {
            let message =
                format!("expected up to {NAME_LEN_MAX} bytes without commas and control characters");
            return Err(ApiError::invalid("lora_name", message));
        }
        if self.base.iter().any(|base| base == name) {
            let message = format!("`{name}` is a name of the base model");
            return Err(ApiError::invalid("lora_name", message));
        }
        Ok(name.into())
    }

    fn take_name(&self, name: Arc<str>, in_place: bool) -> Result<Coming<'_>, ApiError> {
        let mut names = self.names();
        if names.served.contains_key(&name) && !in_place {
            // Controllers look for these words.
            let message = format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to true."
            );
            return Err(ApiError::invalid("lora_name", message));
        }
        if !names.coming.insert(name.clone()) {
            let message = format!("the adapter '{name}' is being loaded");
            return Err(ApiError::Conflict { message });
        }
        Ok(Coming { adapters: self, name })
    }
}
