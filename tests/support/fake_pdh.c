/* Stands in for Windows' pdh.dll: the calls that the monitor uses, with a table that a test fills. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <wchar.h>

#define MORE_DATA 0x800007D2u
#define NO_DATA 0x800007D5u
#define MOST 64

typedef struct { uint32_t status; int64_t large; } value_t;
typedef struct { wchar_t *name; value_t value; } item_t;

typedef struct { wchar_t name[96]; uint32_t status; int64_t large; } row_t;

row_t fake_rows[MOST];
uint32_t fake_row_count, fake_late_rows;
uint32_t fake_open_error, fake_add_error, fake_collect_error, fake_array_error;
int fake_open_queries;
wchar_t fake_counter[128];
static int query, counter;

uint32_t PdhOpenQueryW(const wchar_t *source, size_t user, void **found) {
    if (fake_open_error) return fake_open_error;
    fake_open_queries++;
    *found = &query;
    return 0;
}

uint32_t PdhAddEnglishCounterW(void *of, const wchar_t *path, size_t user, void **found) {
    if (of != &query) return 0xC0000BBCu;
    if (fake_add_error) return fake_add_error;
    wcsncpy(fake_counter, path, 127);
    *found = &counter;
    return 0;
}

uint32_t PdhCollectQueryData(void *of) {
    if (of != &query) return 0xC0000BBCu;
    if (fake_collect_error) return fake_collect_error;
    return fake_row_count ? 0 : NO_DATA;
}

uint32_t PdhGetFormattedCounterArrayW(void *of, uint32_t format, uint32_t *size, uint32_t *count, item_t *items) {
    if (of != &counter || format != 0x400) return 0xC0000BBCu;
    if (fake_array_error) return fake_array_error;
    uint32_t needed = (uint32_t)(fake_row_count * (sizeof(item_t) + sizeof(fake_rows[0].name)));
    uint32_t given = items ? *size : 0;
    *size = needed;
    *count = fake_row_count;
    if (given < needed) return MORE_DATA;
    if (fake_late_rows) { /* a process begins between the two halves of the question */
        fake_row_count += fake_late_rows;
        fake_late_rows = 0;
        *size = (uint32_t)(fake_row_count * (sizeof(item_t) + sizeof(fake_rows[0].name)));
        return MORE_DATA;
    }
    wchar_t *text = (wchar_t *)(items + fake_row_count);
    for (uint32_t i = 0; i < fake_row_count; i++, text += 96) {
        wcscpy(text, fake_rows[i].name);
        items[i] = (item_t){text, {fake_rows[i].status, fake_rows[i].large}};
    }
    return 0;
}

uint32_t PdhCloseQuery(void *of) {
    if (of != &query) return 0xC0000BBCu;
    fake_open_queries--;
    return 0;
}
