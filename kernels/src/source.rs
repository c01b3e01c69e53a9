//! Where weights come from when they are packed: anything that can give a row of a matrix.

use crate::quantize::GroupedRow;
use crate::{HostTensor, WeightType};
use std::ops::Range;

/// A matrix `[N, K]` in whatever form a file has it. Rows are read by many threads, in any order.
pub trait WeightRows: Sync {
    fn shape(&self) -> [usize; 2];

    /// The K weights of a row.
    fn read_f32(&self, row: usize, out: &mut [f32]);

    /// The same row as `stored_as` keeps it, if the file has it so and nothing is rounded. `false`: it has not, and `out` may
    /// hold anything; the row is then read as floats and quantised.
    fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        let _ = (row, stored_as, out);
        false
    }

    /// These rows are not read again: memory that was only needed for them may go.
    fn done(&self, rows: Range<usize>) {
        let _ = rows;
    }
}

impl WeightRows for HostTensor<'_> {
    fn shape(&self) -> [usize; 2] {
        self.check();
        self.shape.try_into().unwrap_or_else(|_| panic!("a matrix has two dimensions, not {:?}", self.shape))
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        HostTensor::read_f32(self, row * out.len(), out);
    }
}

impl<R: WeightRows + ?Sized> WeightRows for &R {
    fn shape(&self) -> [usize; 2] {
        (**self).shape()
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        (**self).read_f32(row, out);
    }

    fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        (**self).read_groups(row, stored_as, out)
    }

    fn done(&self, rows: Range<usize>) {
        (**self).done(rows);
    }
}

/// Rows of the members of a batch, as they are packed.
pub(crate) trait MemberRows: Sync {
    fn read_f32(&self, member: usize, row: usize, out: &mut [f32]);

    /// As in [`WeightRows`].
    fn read_groups(&self, member: usize, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        let _ = (member, row, stored_as, out);
        false
    }

    /// As in [`WeightRows`].
    fn done(&self, member: usize, rows: Range<usize>) {
        let _ = (member, rows);
    }
}

/// Rows that a function makes up: `f(member, row, out)`.
pub(crate) struct Made<F>(pub F);

impl<F: Fn(usize, usize, &mut [f32]) + Sync> MemberRows for Made<F> {
    fn read_f32(&self, member: usize, row: usize, out: &mut [f32]) {
        (self.0)(member, row, out);
    }
}

/// One source for each member.
pub(crate) struct Members<'a, R>(pub &'a [R]);

impl<R: WeightRows> MemberRows for Members<'_, R> {
    fn read_f32(&self, member: usize, row: usize, out: &mut [f32]) {
        self.0[member].read_f32(row, out);
    }

    fn read_groups(&self, member: usize, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        self.0[member].read_groups(row, stored_as, out)
    }

    fn done(&self, member: usize, rows: Range<usize>) {
        self.0[member].done(rows);
    }
}

/// One member whose rows are those of several sources, one after the other.
pub(crate) struct Stacked<'a, R>(pub &'a [R]);

impl<R: WeightRows> Stacked<'_, R> {
    /// The source of a row, and its place in it.
    fn part(&self, mut row: usize) -> (&R, usize) {
        for part in self.0 {
            let rows = part.shape()[0];
            if row < rows {
                return (part, row);
            }
            row -= rows;
        }
        unreachable!("the row is in a part")
    }
}

impl<R: WeightRows> MemberRows for Stacked<'_, R> {
    fn read_f32(&self, _: usize, row: usize, out: &mut [f32]) {
        let (part, row) = self.part(row);
        part.read_f32(row, out);
    }

    fn read_groups(&self, _: usize, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        let (part, row) = self.part(row);
        part.read_groups(row, stored_as, out)
    }

    fn done(&self, _: usize, rows: Range<usize>) {
        let mut first = 0;
        for part in self.0 {
            let next = first + part.shape()[0];
            let own = rows.start.max(first)..rows.end.min(next);
            if !own.is_empty() {
                part.done(own.start - first..own.end - first);
            }
            first = next;
        }
    }
}
