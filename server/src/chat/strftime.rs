//! The part of `strftime` that chat templates use to tell the model the date, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, String> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, day_of_year) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        // `%-d`: without leading zeros.
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let padded =
            |number: u64, width: usize| if bare { number.to_string() } else { format!("{number:0width$}") };
        out.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100, 2),
            Some('m') => padded(month, 2),
            Some('d') => padded(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => padded(day_of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded((hour + 11) % 12 + 1, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => return Err(format!("strftime_now: format %{} is not supported", other.unwrap_or(' '))),
        });
    }
    Ok(out)
}

/// Year, month, day and day of the year of a number of days since 1970.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    // 400 years always have the same number of days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let mut month = 1;
    for len in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, format: &str, expected: Result<&str, &str>) {
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime(time, format).as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn dates_as_python_writes_them() {
        check(0, "%A, %d %B %Y %H:%M:%S", Ok("Thursday, 01 January 1970 00:00:00"));
        check(951_782_399, "%F %T %a %b %j", Ok("2000-02-28 23:59:59 Mon Feb 059"));
        check(951_868_799, "%d %b %Y", Ok("29 Feb 2000"));
        check(1_735_689_599, "%Y-%m-%d %j %I:%M %p", Ok("2024-12-31 366 11:59 PM"));
        check(1_751_500_800, "%-d/%-m/%y %e 100%%", Ok("3/7/25  3 100%"));
        check(0, "%Q", Err("strftime_now: format %Q is not supported"));
    }
}
