//! Machine code for one architecture, and how it lies in a file of the cache.

/// Opens every file of the cache.
const MAGIC: &[u8] = b"perilune cubin 1\n";

/// Machine code and what was said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    pub bytes: Vec<u8>,
    /// The name of each expression of the job.
    pub symbols: Vec<String>,
    /// Registers, stack and shared memory of each kernel, as the assembler reports them.
    pub log: String,
}

impl Cubin {
    pub(super) fn to_file(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        let parts = [self.bytes.as_slice(), self.log.as_bytes()];
        for part in parts.into_iter().chain(self.symbols.iter().map(|symbol| symbol.as_bytes())) {
            file.extend((part.len() as u64).to_le_bytes());
            file.extend(part);
        }
        file
    }

    pub(super) fn from_file(file: &[u8]) -> Option<Self> {
        let mut rest = file.strip_prefix(MAGIC)?;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (len, tail) = rest.split_first_chunk::<8>()?;
            let (part, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            parts.push(part);
            rest = tail;
        }
        let string = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
        let [bytes, log, symbols @ ..] = parts.as_slice() else { return None };
        let symbols = symbols.iter().map(|part| string(part)).collect::<Option<_>>()?;
        Some(Self { bytes: bytes.to_vec(), symbols, log: string(log)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_cache() {
        let cubin = Cubin {
            bytes: vec![1, 0, 255],
            symbols: vec!["_Z1a".to_string(), String::new()],
            log: "used".to_string(),
        };
        let file = cubin.to_file();
        assert_eq!(Cubin::from_file(&file), Some(cubin));
        // Cut anywhere, it is damaged, or lacks a symbol.
        for len in 0..file.len() {
            let cut = Cubin::from_file(&file[..len]);
            assert!(cut.is_none_or(|cut| cut.symbols.len() < 2), "cut to {len} bytes");
        }
        assert_eq!(Cubin::from_file(b"something else"), None);
    }
}
