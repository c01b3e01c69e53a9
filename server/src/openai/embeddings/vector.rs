//! From summed states to vectors: in f64 until they are written, so that the order in which the engine worked does not show.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use scheduler::PooledSum;

/// The mean of the summed states.
pub fn mean(pooled: &PooledSum) -> Vec<f64> {
    pooled.sum.0.iter().map(|sum| sum / pooled.num_rows as f64).collect()
}

/// Scaled to length 1; a vector without a length stays as it is.
pub fn normalise(vector: &mut [f64]) {
    let norm = dot(vector, vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
}

/// The cosine of the angle between two vectors, in [-1, 1]; 0 where one has no length. A vector and itself have exactly 1.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { (dot(a, b) / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Little-endian f32, as OpenAI's clients read it.
pub fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scheduler::RowSum;

    #[test]
    fn means_and_lengths() {
        let mut vector = mean(&PooledSum { sum: RowSum(vec![6.0, -8.0]), num_rows: 2 });
        assert_eq!(vector, [3.0, -4.0]);
        normalise(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }

    #[test]
    fn cosines() {
        for scale in [1e-3, 1.0, 7.3e5] {
            let vector: Vec<f64> = (0..301).map(|i| f64::from(i * 37 % 101) * scale - 40.0).collect();
            let opposite: Vec<f64> = vector.iter().map(|x| -x).collect();
            assert_eq!(cosine(&vector, &vector), 1.0);
            assert_eq!(cosine(&vector, &opposite), -1.0);
        }
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[0.0], &[0.0]), 0.0);
    }

    #[test]
    fn base64_is_little_endian() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
