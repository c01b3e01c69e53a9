//! Every kernel that there is: what is compiled ahead of time and what a test holds to its budget.

use super::launch::Kernel;
use super::{linear, norm};

pub(super) const KERNELS: &[&Kernel] = &[&linear::KERNEL, &norm::KERNEL];
