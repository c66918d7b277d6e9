//! How single values are written: addresses, lengths of time, lists.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// The socket addresses of a `--web.listen-address`: an empty host means every address, and
/// `[::]` accepts IPv4 as well. An IPv4 address may stand in brackets, too, so that a manifest can write
/// `[$(HOST_IP)]:10379` for both kinds.
///
/// # Errors
///
/// A sentence that says what is wrong with it.
pub fn listen_addresses(text: &str) -> Result<std::net::SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    let bracketed = full.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    if let Some((ip, port)) = bracketed
        && let (Ok(ip), Ok(port)) = (ip.parse::<std::net::Ipv4Addr>(), port.parse::<u16>())
    {
        return Ok((ip, port).into());
    }
    std::net::SocketAddr::from_str(&full.replace("localhost:", "127.0.0.1:"))
        .map_err(|_| format!("{text:?} is no address; use :10379, 127.0.0.1:10379 or [::1]:10379"))
}

/// A whole number; as a text, too, since flags are texts.
///
/// # Errors
///
/// When it is neither.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    struct Whole;
    impl Visitor<'_> for Whole {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<usize, E> {
            usize::try_from(number)
                .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<usize, E> {
            text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Whole)
}

/// A length of time with its unit: `500ms`, `15s`, `2m`.
///
/// # Errors
///
/// When it is no text, or no length of time.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Length;
    impl Visitor<'_> for Length {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a length of time with its unit, such as 500ms, 15s or 2m")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text)
                .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Length)
}

/// A list, or one text with commas, which is how a list is written in an environment variable.
///
/// # Errors
///
/// When it is neither, or an item is not of type `T`.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or one text with commas")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| T::deserialize(de::value::StrDeserializer::new(item))).collect()
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_any(Items(std::marker::PhantomData))
}

/// As [`list`]; null stands for none.
///
/// # Errors
///
/// Those of [`list`].
pub fn optional_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    match Option::<serde_json::Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(value) => list(value).map(Some).map_err(de::Error::custom),
    }
}
