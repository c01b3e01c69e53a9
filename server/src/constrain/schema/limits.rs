//! How large a schema may be.

#[derive(Debug, Clone, Copy)]
pub struct SchemaLimits {
    /// Of the schema as JSON text, in bytes.
    pub len: usize,
    /// Schemas within schemas.
    pub depth: usize,
    /// Schemas in all, each counted where it stands.
    pub num_schemas: usize,
    /// Values of all `enum` and `const`.
    pub num_values: usize,
    /// Largest number in `minItems`, `maxLength` and their like.
    pub count: u64,
    pub pattern_len: usize,
}

impl Default for SchemaLimits {
    fn default() -> Self {
        Self {
            len: 512 << 10,
            depth: 64,
            num_schemas: 10_000,
            num_values: 20_000,
            count: 100_000,
            pattern_len: 4 << 10,
        }
    }
}
