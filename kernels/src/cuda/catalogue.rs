//! Every kernel that there is: what is compiled ahead of time and what a test holds to its budget.

use super::launch::Kernel;
use super::{elementwise, linear, norm, rows};

pub(super) const KERNELS: &[&Kernel] = &[&elementwise::KERNEL, &linear::KERNEL, &norm::KERNEL, &rows::KERNEL];
