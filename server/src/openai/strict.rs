//! A JSON value as serde reads types from it, but for one thing: an object is an object. Serde's derived structs can be read from a list of
//! their fields as well, in the order in which they are declared, so that `"stream_options": [true]` would ask for something.

use serde::Deserializer;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Value};

pub struct Strict(pub Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let read = visitor.visit_seq(&mut items)?;
                items.end().map(|()| read)
            }
            Value::Object(map) => {
                let members = map.into_iter().map(|(name, value)| (name, Strict(value)));
                let mut members = MapDeserializer::new(members);
                let read = visitor.visit_map(&mut members)?;
                members.end().map(|()| read)
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &"an object")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Inner {
        flag: bool,
        count: Option<i32>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        one: Option<Inner>,
        #[serde(default)]
        many: Vec<Inner>,
        #[serde(default)]
        named: BTreeMap<String, Inner>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Object { text: String },
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_path_to_error::deserialize(Strict(value))
            .map_err(|error| format!("{}: {}", error.path(), error.inner()))
    }

    #[test]
    fn a_list_is_no_object_wherever_it_stands() {
        let outer =
            json!({"one": {"flag": true}, "many": [{}, {"count": 2}], "named": {"a": {"flag": true}}});
        let read_outer: Outer = read(outer.clone()).expect("is right");
        assert_eq!(read_outer, serde_json::from_value(outer).expect("is right"));
        for (wrong, path) in [
            (json!([]), "."),
            (json!({"one": [true]}), "one"),
            (json!({"many": [{}, [true, 1]]}), "many[1]"),
            (json!({"named": {"a": []}}), "named.a"),
        ] {
            let said = read::<Outer>(wrong).expect_err("a list");
            assert_eq!(said, format!("{path}: invalid type: sequence, expected an object"));
        }
        assert!(read::<Either>(json!(["x"])).is_err());
        assert_eq!(read(json!({"text": "x"})), Ok(Either::Object { text: "x".into() }));
    }

    #[test]
    fn everything_else_is_as_ever() {
        assert_eq!(read(json!([1, 2.5])), Ok(vec![1.0_f32, 2.5]));
        assert_eq!(read(json!([[1], []])), Ok(vec![vec![1_u32], vec![]]));
        assert_eq!(read(json!(null)), Ok(None::<bool>));
        assert_eq!(read(json!({"a": -1})), Ok(BTreeMap::from([("a".to_owned(), -1_i64)])));
        assert_eq!(read::<(bool, u8)>(json!([true, 1])), Ok((true, 1)));
        assert!(read::<(bool, u8)>(json!([true, 1, 2])).is_err(), "a list that is too long");
        let value = json!({"a": [1, {"b": null}], "c": "d"});
        assert_eq!(read(value.clone()), Ok(value));
        for number in [json!(u64::MAX), json!(i64::MIN), json!(1.5)] {
            assert_eq!(read(number.clone()), Ok(number));
        }
        assert!(read::<u8>(json!(256)).is_err());
        assert!(read::<i32>(json!(1.5)).is_err());
    }
}
