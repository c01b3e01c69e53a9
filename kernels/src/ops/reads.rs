//! Which weights a step reads, and in which order, told once: a processor's threads ask for them beforehand, while they wait or compute what
//! reads little (cpu/ahead.rs). It changes no number, and a GPU has no use for it.

use crate::cpu::ahead::{Key, Panels, Plan, Reads};
use crate::cpu::processor::Cpu;
use crate::{Device, Experts, Matrix, MatrixBatch};
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;

/// The products of a step in their order. After the last one comes the first of the next step.
pub struct ReadPlan {
    /// None: a GPU.
    cpu: Option<Arc<Cpu>>,
    reads: Vec<Reads>,
    /// To be asked for with the next product.
    early: Vec<Panels>,
}

impl ReadPlan {
    pub fn new(device: &Device) -> Self {
        let cpu = match device {
            Device::Cpu(cpu) => Some(cpu.clone()),
            Device::Cuda(_) => None,
        };
        Self { cpu, reads: Vec::new(), early: Vec::new() }
    }

    pub fn linear(&mut self, weights: &Matrix) {
        self.heads(weights.as_batch());
    }

    /// As `linear_pair` reads them.
    pub fn linear_pair(&mut self, weights: [&Matrix; 2]) {
        let [first, second] = weights;
        if first.stored_as() != second.stored_as() {
            return weights.into_iter().for_each(|weights| self.linear(weights));
        }
        if self.cpu.is_some() {
            let panels = Panels(weights.into_iter().map(|weights| run(weights.as_batch())).collect());
            self.push(first.as_batch(), vec![panels]);
        }
    }

    pub fn heads(&mut self, weights: &MatrixBatch) {
        if self.cpu.is_some() {
            self.push(weights, vec![Panels(vec![run(weights)])]);
        }
    }

    /// Of a product that is too short to ask for what it reads: with the next one that is told.
    pub fn early(&mut self, weights: &Matrix) {
        if self.cpu.is_some() {
            self.early.push(Panels(vec![run(weights.as_batch())]));
        }
    }

    /// As `moe_and_shared` reads them; `shared` is gate and up, and down.
    pub fn experts(&mut self, experts: &Experts, shared: Option<[&Matrix; 2]>) {
        if self.cpu.is_none() {
            return;
        }
        // Units of a panel of gate and one of up, which are half the matrix apart.
        let halves = shared.map(|[gate_up, _]| {
            let (bytes, panel) = run(gate_up.as_batch());
            let middle = bytes.start + bytes.len() / panel / 2 * panel;
            [Panels(vec![(bytes.start..middle, panel)]), Panels(vec![(middle..bytes.end, panel)])]
        });
        self.push(&experts.gate_up, halves.into_iter().flatten().collect());
        if let Some(reads) = self.reads.last_mut() {
            reads.is_choice = true;
        }
        self.push(
            &experts.down,
            shared.map(|[_, down]| Panels(vec![run(down.as_batch())])).into_iter().collect(),
        );
    }

    fn push(&mut self, key: &MatrixBatch, known: Vec<Panels>) {
        let mut stretches = take(&mut self.early);
        stretches.extend(known);
        self.reads.push(Reads { key: Key::of(key.as_bytes()), stretches, is_choice: false });
    }

    /// When all is told.
    pub fn ready(self) -> ReadyPlan {
        let Self { cpu, reads, .. } = self;
        ReadyPlan(cpu.map(|cpu| {
            let plan = Plan::new(&reads, cpu.pool.num_workers());
            (cpu, Arc::new(plan))
        }))
    }
}

/// A plan that a device's threads can follow.
pub struct ReadyPlan(Option<(Arc<Cpu>, Arc<Plan>)>);

impl ReadyPlan {
    /// From now on the device's threads ask for these weights, and for no others.
    pub fn follow(&self) {
        if let Some((cpu, plan)) = &self.0 {
            cpu.pool.follow(plan.clone());
        }
    }
}

/// Where the panels lie, and how long one is.
fn run(weights: &MatrixBatch) -> (Range<usize>, usize) {
    let (start, panel) = (weights.as_bytes().as_ptr().addr(), weights.panel_bytes());
    (start..start + weights.count() * weights.panels_per_member() * panel, panel)
}
