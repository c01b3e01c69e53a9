//! Objects in the order of their making, found by id and listed by page, as the API lists them.

use std::collections::{BTreeMap, HashMap};

#[derive(Debug)]
pub struct Registry<T> {
    by_order: BTreeMap<u64, (String, T)>,
    orders: HashMap<String, u64>,
    next: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

#[derive(Debug, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub has_more: bool,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { by_order: BTreeMap::new(), orders: HashMap::new(), next: 0 }
    }
}

impl<T> Registry<T> {
    /// The place of the next object; kept on disk, because times in seconds do not tell objects apart.
    pub fn next_order(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn insert(&mut self, order: u64, id: String, item: T) {
        self.next = self.next.max(order);
        self.orders.insert(id.clone(), order);
        self.by_order.insert(order, (id, item));
    }

    pub fn len(&self) -> usize {
        self.by_order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_order.is_empty()
    }

    pub fn get(&self, id: &str) -> Option<&T> {
        self.by_order.get(self.orders.get(id)?).map(|(_, item)| item)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.by_order.get_mut(self.orders.get(id)?).map(|(_, item)| item)
    }

    pub fn remove(&mut self, id: &str) -> Option<T> {
        let order = self.orders.remove(id)?;
        self.by_order.remove(&order).map(|(_, item)| item)
    }

    /// The oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &T)> {
        self.by_order.values().map(|(id, item)| (id.as_str(), item))
    }

    /// Up to `limit` of those that `filter` takes, after the one with the id `after`; `None` where there is no such object.
    pub fn page<U>(
        &self,
        order: Order,
        after: Option<&str>,
        limit: usize,
        filter: impl Fn(&T) -> Option<U>,
    ) -> Option<Page<U>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = match after {
            Some(id) => Some(*self.orders.get(id)?),
            None => None,
        };
        let mut items: Vec<U> = match order {
            Order::OldestFirst => {
                let range = (after.map_or(Unbounded, Excluded), Unbounded);
                let all = self.by_order.range(range).filter_map(|(_, (_, item))| filter(item));
                all.take(limit + 1).collect()
            }
            Order::NewestFirst => {
                let range = (Unbounded, after.map_or(Unbounded, Excluded));
                let all = self.by_order.range(range).rev().filter_map(|(_, (_, item))| filter(item));
                all.take(limit + 1).collect()
            }
        };
        let has_more = items.len() > limit;
        items.truncate(limit);
        Some(Page { items, has_more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_everything_once() {
        let mut registry = Registry::default();
        for i in 0..7 {
            let order = registry.next_order();
            registry.insert(order, format!("id{i}"), i);
        }
        registry.remove("id3");
        for limit in 1..9 {
            for (order, expected) in
                [(Order::OldestFirst, vec![0, 2, 4, 6]), (Order::NewestFirst, vec![6, 4, 2, 0])]
            {
                let mut found = Vec::new();
                let mut after = None;
                loop {
                    let even = |i: &i32| (i % 2 == 0).then_some(*i);
                    let page = registry.page(order, after.as_deref(), limit, even).expect("a page");
                    assert!(page.items.len() <= limit);
                    found.extend(page.items);
                    if !page.has_more {
                        break;
                    }
                    after = found.last().map(|last| format!("id{last}"));
                }
                assert_eq!(found, expected, "{limit}");
            }
        }
        assert_eq!(registry.page(Order::OldestFirst, Some("id3"), 1, |i| Some(*i)), None);
    }
}
