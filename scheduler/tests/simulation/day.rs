//! One day from one seed: the real scheduler and the shadow model, in virtual time, with every oracle after every step.

use crate::oracle::Oracle;
use crate::rng::{Rng, chain};
use crate::shadow::Shadow;
use crate::truth::Truth;
use crate::workload::{Prompt, Workload};
use scheduler::{
    Batch, Engine, Event, Failure, FinishReason, ModelRunner, Reject, Scheduler, SchedulerConfig, Sequence,
    SequenceId, Step,
};
use std::collections::VecDeque;
use std::io::Write;

/// What a day came to. Days add up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    pub steps: usize,
    /// Of them those that were made while the one before ran, and what ran in them for nothing.
    pub ahead: usize,
    pub dropped: usize,
    pub tokens: usize,
    pub cached: usize,
    /// Of what was found so many tokens on the host; blocks that were copied there, lost because it had no room, and copied back.
    pub host_hits: usize,
    pub stored: usize,
    pub lost: usize,
    pub loaded: usize,
    /// Steps that waited for loads which nobody wanted any more.
    pub stray: usize,
    pub preemptions: usize,
    pub encodes: usize,
    /// Rows of prompts of which something was told.
    pub told: usize,
    pub deferred: usize,
    /// Tokens that were guessed, and those of them that were right.
    pub drafted: usize,
    pub accepted: usize,
    pub finished: usize,
    /// Of them those whose constraint said so.
    pub completed: usize,
    pub failed: usize,
    pub aborted: usize,
    pub rejected: usize,
    /// From arrival to first token, summed over the sequences that had one.
    pub first_token_us: u64,
    pub first_tokens: usize,
    pub now_us: u64,
    /// A hash of every batch and event.
    pub trace: u64,
}

impl std::ops::AddAssign<&Report> for Report {
    fn add_assign(&mut self, day: &Report) {
        self.steps += day.steps;
        self.ahead += day.ahead;
        self.dropped += day.dropped;
        self.tokens += day.tokens;
        self.cached += day.cached;
        self.host_hits += day.host_hits;
        self.stored += day.stored;
        self.lost += day.lost;
        self.loaded += day.loaded;
        self.stray += day.stray;
        self.preemptions += day.preemptions;
        self.encodes += day.encodes;
        self.told += day.told;
        self.deferred += day.deferred;
        self.drafted += day.drafted;
        self.accepted += day.accepted;
        self.finished += day.finished;
        self.completed += day.completed;
        self.failed += day.failed;
        self.aborted += day.aborted;
        self.rejected += day.rejected;
        self.first_token_us += day.first_token_us;
        self.first_tokens += day.first_tokens;
        self.now_us += day.now_us;
        self.trace = self.trace.wrapping_add(day.trace);
    }
}

/// The scheduler as it is used, or taken apart so that something can happen between `execute` and `commit`.
enum Machinery {
    Whole(Box<Engine<Shadow>>),
    Parts(Box<Parts>),
}

struct Parts {
    scheduler: Scheduler,
    shadow: Shadow,
    /// Made and not yet taken in, and whether it is drawn.
    begun: VecDeque<(Batch, bool)>,
}

/// Which of two ways to make a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Making {
    Next,
    Ahead,
}

impl Machinery {
    fn abort(&mut self, id: SequenceId) -> bool {
        match self {
            Machinery::Whole(engine) => engine.abort(id),
            Machinery::Parts(parts) => parts.scheduler.abort(id),
        }
    }

    fn add(&mut self, sequence: Sequence) -> Result<(), Reject> {
        match self {
            Machinery::Whole(engine) => engine.add(sequence),
            Machinery::Parts(parts) => parts.scheduler.add(sequence),
        }
    }

    fn scheduler(&self) -> &Scheduler {
        match self {
            Machinery::Whole(engine) => engine.scheduler(),
            Machinery::Parts(parts) => &parts.scheduler,
        }
    }

    fn shadow(&self) -> &Shadow {
        match self {
            Machinery::Whole(engine) => engine.runner(),
            Machinery::Parts(parts) => &parts.shadow,
        }
    }

    fn shadow_mut(&mut self) -> &mut Shadow {
        match self {
            Machinery::Whole(engine) => engine.runner_mut(),
            Machinery::Parts(parts) => &mut parts.shadow,
        }
    }

    fn has_begun(&self) -> bool {
        match self {
            Machinery::Whole(engine) => engine.has_begun(),
            Machinery::Parts(parts) => !parts.begun.is_empty(),
        }
    }

    fn running(&self) -> Vec<SequenceId> {
        self.scheduler().running_ids().collect()
    }

    /// False: there is none to be made.
    fn make(&mut self, making: Making) -> bool {
        match (self, making) {
            (Machinery::Whole(engine), Making::Ahead) => engine.begin_ahead(),
            (Machinery::Whole(engine), Making::Next) => {
                engine.begin();
                true
            }
            (Machinery::Parts(parts), _) => parts.make(making),
        }
    }

    /// The step before the one that was begun was taken in. What is sampled of that one may be drawn, as far as is known how.
    fn go_on(&mut self) {
        match self {
            Machinery::Whole(engine) => engine.begin(),
            // Or later.
            Machinery::Parts(parts) if parts.is_late() => {}
            Machinery::Parts(parts) => {
                parts.complete();
                parts.draw_if(Batch::can_be_drawn);
            }
        }
    }

    /// Waits for those whom constraints end, and for their masks.
    fn draw(&mut self) -> Vec<Event> {
        match self {
            Machinery::Whole(engine) => {
                let events = engine.finish_accepting();
                engine.draw();
                events
            }
            Machinery::Parts(parts) => {
                let events = parts.scheduler.finish_accepting();
                parts.complete();
                parts.draw_if(|_| true);
                events
            }
        }
    }
}

impl Parts {
    fn make(&mut self, making: Making) -> bool {
        let batch = match making {
            Making::Next => Some(self.scheduler.schedule()),
            Making::Ahead if self.begun[0].1 && self.shadow.takes_ahead() => {
                self.scheduler.schedule_ahead(&self.begun[0].0)
            }
            Making::Ahead => None,
        };
        let Some(batch) = batch else { return false };
        self.shadow.begin(&batch);
        self.begun.push_back((batch, false));
        self.draw_if(Batch::can_be_drawn);
        true
    }

    /// By chance.
    fn is_late(&self) -> bool {
        chain(self.shadow.now_us, 5).is_multiple_of(2)
    }

    fn complete(&mut self) {
        if let [(batch, false)] = self.begun.make_contiguous() {
            self.scheduler.complete_samples(batch);
        }
    }

    fn draw_if(&mut self, can_be_drawn: impl FnOnce(&Batch) -> bool) {
        let (batch, is_drawn) = self.begun.back_mut().expect("a step was begun");
        if !*is_drawn && can_be_drawn(batch) {
            self.shadow.draw(batch);
            *is_drawn = true;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    No,
    StepByStep,
}

/// Past the test harness, which keeps what `println` says to itself when a test passes.
pub fn tell(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output is open");
}

pub struct Day {
    rng: Rng,
    workload: Workload,
    machinery: Machinery,
    oracle: Oracle,
    /// What is known and not yet told: who ended, as constraints said while a step ran.
    untold: Vec<Event>,
    /// Finished answers that a next turn may continue.
    conversations: Vec<Prompt>,
    /// One in so many steps aborts somebody.
    abort_rate: usize,
    told: Told,
    report: Report,
}

impl Day {
    pub fn new(seed: u64, told: Told) -> Self {
        let mut rng = Rng(seed);
        let workload = Workload::new(&mut rng);
        Self::of(workload, rng, told)
    }

    /// A day on which somebody hangs up every few steps.
    pub fn of_hang_ups(seed: u64, config: SchedulerConfig) -> Self {
        let mut rng = Rng(seed);
        let mut workload = Workload::on(config, &mut rng);
        workload.gap_us = 7000;
        Self { abort_rate: 9, ..Self::of(workload, rng, Told::No) }
    }

    fn of(workload: Workload, mut rng: Rng, told: Told) -> Self {
        let shadow = Shadow::new(workload.config, workload.machine);
        let machinery = if rng.one_in(2) {
            Machinery::Whole(Box::new(Engine::new(workload.config, shadow)))
        } else {
            let (scheduler, begun) = (Scheduler::new(workload.config), VecDeque::new());
            Machinery::Parts(Box::new(Parts { scheduler, shadow, begun }))
        };
        if told == Told::StepByStep {
            tell(&format!("{:?}\n{:?}", workload.config, workload.machine));
        }
        let abort_rate = rng.range(3, 60);
        let oracle = Oracle::new(workload.config);
        let (conversations, report) = (Vec::new(), Report::default());
        let untold = Vec::new();
        Self { rng, workload, machinery, oracle, untold, conversations, abort_rate, told, report }
    }

    /// Sends so many requests, and goes on until all have ended.
    pub fn run(mut self, mut num_requests: usize) -> Report {
        let mut next_arrival_us = 0;
        while num_requests > 0 || !self.oracle.live.is_empty() {
            if self.oracle.live.is_empty() {
                self.machinery.shadow_mut().now_us = next_arrival_us.max(self.machinery.shadow().now_us);
            }
            while num_requests > 0 && next_arrival_us <= self.machinery.shadow().now_us {
                num_requests -= 1;
                next_arrival_us += self.rng.range(0, 2 * self.workload.gap_us) as u64;
                self.arrive();
            }
            if self.rng.one_in(self.abort_rate) {
                self.abort_somebody();
            }
            self.step();
        }
        while self.machinery.has_begun() {
            // For nobody any more.
            self.step();
        }
        assert!(self.machinery.scheduler().is_idle(), "idle when all have ended");
        let occupancy = self.machinery.scheduler().occupancy();
        assert_eq!((occupancy.running, occupancy.waiting, occupancy.blocks_used), (0, 0, 0), "leaked");
        self.report.now_us = self.machinery.shadow().now_us;
        self.report
    }

    fn arrive(&mut self) {
        for sequence in self.workload.request(&mut self.rng, &self.conversations) {
            let id = sequence.id;
            let expected =
                self.oracle.expected_reject(&sequence, self.machinery.scheduler().occupancy().waiting);
            let truth = Truth::new(self.workload.machine, sequence.clone());
            let result = self.machinery.add(sequence);
            assert_eq!(result, expected.map_or(Ok(()), Err), "{id:?}");
            let now_us = self.machinery.shadow().now_us;
            self.tell(|| match &result {
                Ok(()) => {
                    format!("add #{} of {} tokens, {:?}", id.0, truth.tokens.len(), truth.params().max_tokens)
                }
                Err(reject) => format!("reject #{}: {reject:?}", id.0),
            });
            if result.is_ok() {
                self.oracle.added(&truth, now_us);
                self.machinery.shadow_mut().truths.insert(id, truth);
            } else {
                self.report.rejected += 1;
            }
        }
    }

    fn abort_somebody(&mut self) {
        if self.oracle.live.is_empty() {
            return;
        }
        let index = self.rng.range(0, self.oracle.live.len() - 1);
        let id = *self.oracle.live.keys().nth(index).unwrap();
        if self.oracle.is_leaving(id) {
            return;
        }
        self.tell(|| format!("abort #{}", id.0));
        assert!(self.machinery.abort(id), "{id:?} was live");
        assert!(!self.machinery.scheduler().running_ids().any(|running| running == id), "{id:?} was aborted");
        self.oracle.hung_up(id);
        self.machinery.shadow_mut().gone.insert(id, None);
        self.report.aborted += 1;
        self.machinery.scheduler().check();
    }

    fn step(&mut self) {
        self.machinery.scheduler().check();
        if !self.machinery.has_begun() {
            if self.machinery.scheduler().is_idle() {
                return;
            }
            self.make(Making::Next);
        }
        if self.workload.config.async_scheduling {
            self.machinery.go_on();
            self.hang_ups();
            if !self.make(Making::Ahead) {
                self.draw();
                self.make(Making::Ahead);
            }
        }
        let mut step = match &mut self.machinery {
            Machinery::Whole(engine) => engine.finish().unwrap(),
            Machinery::Parts(..) => self.finish_with_hang_ups(),
        };
        step.events.splice(0..0, std::mem::take(&mut self.untold));
        self.machinery.scheduler().check();
        self.shadow_has_seen(&step);
        self.oracle.after_step(&step, self.machinery.shadow());
        self.account(&step);
    }

    /// Nobody hangs up while it is asked who ends.
    fn draw(&mut self) {
        self.untold = self.machinery.draw();
        for event in &self.untold {
            let Event::Finished { id, reason, .. } = event else { panic!("{event:?} while a step runs") };
            self.machinery.shadow_mut().gone.insert(*id, Some(*reason));
            self.oracle.ends_untold(*id);
        }
        self.machinery.scheduler().check();
    }

    fn make(&mut self, making: Making) -> bool {
        let before = self.machinery.running();
        if !self.machinery.make(making) {
            assert_eq!(before, self.machinery.running(), "no step, and not as before");
            self.machinery.scheduler().check();
            return false;
        }
        self.machinery.scheduler().check();
        let preempted = self.oracle.step_is_made(&before, &self.machinery.running());
        assert!(making == Making::Next || preempted.is_empty(), "preempted while a step ran");
        for id in preempted {
            // No step admits after it preempted.
            self.machinery.shadow_mut().forget_progress(id);
        }
        true
    }

    fn hang_ups(&mut self) {
        while self.rng.one_in(self.abort_rate) && !self.oracle.live.is_empty() {
            self.abort_somebody();
        }
    }

    /// Clients hang up while the step runs.
    fn finish_with_hang_ups(&mut self) -> Step {
        let Machinery::Parts(parts) = &mut self.machinery else { unreachable!() };
        parts.complete();
        if parts.begun.len() == 1 {
            parts.draw_if(|_| true);
        }
        let (batch, _) = parts.begun.pop_front().expect("a step was begun");
        let output = parts.shadow.execute(&batch).unwrap();
        self.hang_ups();
        let Machinery::Parts(parts) = &mut self.machinery else { unreachable!() };
        let Parts { scheduler, shadow, .. } = &mut **parts;
        let mut events = scheduler.finish_accepting();
        scheduler.check();
        let mut step = scheduler.commit(batch, output);
        events.append(&mut step.events);
        step.events = events;
        if !shadow.works_alone() {
            step.events.extend(scheduler.finish_accepting());
        }
        step
    }

    /// The truth goes on by what was said; who ended or was preempted starts over or is gone.
    fn shadow_has_seen(&mut self, step: &Step) {
        for event in &step.events {
            match event {
                Event::Started { .. } | Event::PromptLogprobs { .. } | Event::Pooled { .. } => {}
                Event::Token { id, token } => {
                    self.machinery.shadow_mut().truths.get_mut(id).expect("added").push(token.token);
                }
                Event::Finished { id, reason, .. } => {
                    self.machinery.shadow_mut().gone.insert(*id, Some(*reason));
                    if *reason == FinishReason::Failed(Failure::NonFiniteLogits) {
                        let running = self.machinery.scheduler().running_ids().collect();
                        self.machinery.shadow_mut().poison(*id, running);
                    }
                    let truth = &self.machinery.shadow().truths[id];
                    let (tokens, images) = (truth.tokens.clone(), truth.sequence.images().to_vec());
                    self.conversations.push(Prompt { tokens, images });
                }
            }
        }
    }

    fn account(&mut self, step: &Step) {
        let now_us = self.machinery.shadow().now_us;
        let report = &mut self.report;
        report.steps += 1;
        report.ahead += usize::from(step.stats.is_ahead);
        report.dropped += step.stats.dropped_tokens;
        report.tokens += step.stats.num_useful_tokens();
        report.drafted += step.stats.draft_tokens;
        report.accepted += step.stats.num_accepted();
        report.deferred += step.stats.deferred_tokens;
        report.cached += step.stats.prefix_hits;
        report.host_hits += step.stats.host_hits;
        report.stored += step.stats.stored_blocks;
        report.lost += step.stats.lost_blocks;
        report.loaded += step.stats.loaded_blocks;
        report.stray += usize::from(self.machinery.shadow().last_waited);
        report.preemptions += step.stats.preempted.len();
        report.encodes += step.stats.encoded_images;
        report.told += self.machinery.shadow().last_counts.prompt_rows;
        for event in &step.events {
            match event {
                Event::Finished { reason: FinishReason::Failed(_), .. } => report.failed += 1,
                Event::Finished { reason, .. } => {
                    report.finished += 1;
                    report.completed += usize::from(*reason == FinishReason::Complete);
                }
                _ => {}
            }
        }
        for arrived_us in self.oracle.take_first_tokens() {
            report.first_tokens += 1;
            report.first_token_us += now_us - arrived_us;
        }
        let mut line = format!("step {} at {now_us} us:{}", report.steps, self.machinery.shadow().last_batch);
        if step.stats.is_ahead {
            line += " ahead";
        }
        if !step.stats.preempted.is_empty() {
            line += &format!(" preempted {:?}", step.stats.preempted);
        }
        let events: Vec<String> = step.events.iter().map(describe).collect();
        line += &format!(" -> {}", events.join(", "));
        for byte in line.bytes() {
            self.report.trace = self.report.trace.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte);
        }
        self.report.trace = chain(self.report.trace, now_us);
        self.tell(|| line);
    }

    fn tell(&self, line: impl FnOnce() -> String) {
        if self.told == Told::StepByStep {
            tell(&line());
        }
    }
}

fn describe(event: &Event) -> String {
    let number = |id: &SequenceId| id.0;
    match event {
        Event::Started { id, cached_tokens } => format!("#{} starts with {cached_tokens} cached", number(id)),
        Event::PromptLogprobs { id, logprobs } => format!("#{} tells {}", number(id), logprobs.len()),
        Event::Pooled { id, pooled } => format!("#{} pools {:?}", number(id), pooled.sum.0),
        Event::Token { id, token } => format!("#{} says {}", number(id), token.token),
        Event::Finished { id, reason, .. } => format!("#{} ends: {reason:?}", number(id)),
    }
}
