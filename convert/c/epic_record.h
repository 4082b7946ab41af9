// EPIC's record on the wire, version 1, for firmware in C99, C++11 or later. Added by `epic convert --c-array`.
//
// Little-endian on every processor; allocates nothing. The frame around a record on a serial line or TCP
// (COBS, MAC) is described in docs/protocol.md.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EPIC_RECORD_VERSION 1
#define EPIC_RECORD_HEADER_BYTES 38

enum epic_record_type {
    EPIC_LATENT = 1,
    EPIC_ACK = 2,
    EPIC_HELLO = 3,
    EPIC_HEALTH = 4,
    EPIC_UPDATE = 5,
    EPIC_REFUSAL = 6,
    EPIC_RECORDING = 7
};

struct epic_record {
    uint8_t type;
    uint16_t device;
    uint16_t survey;
    uint32_t boot;            // increases by one each time the device starts
    uint32_t sequence;        // from 1 within a boot
    uint32_t event;           // the same for all devices of the survey
    uint64_t sample_time_us;  // since 1970; 0 while the device has no clock
    uint8_t model_hash[8];    // EPIC_MODEL_HASH in bytes
    uint16_t payload_bytes;
    const uint8_t *payload;
};

static inline void epic_put(uint8_t *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t epic_get(const uint8_t *data, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)data[i] << (8 * i);
    return value;
}

// Write a record into `out` of `room` bytes. Returns the number of bytes written, 0 if the record does not fit.
static inline size_t epic_record_encode(const struct epic_record *record, uint8_t *out, size_t room) {
    size_t size = EPIC_RECORD_HEADER_BYTES + (size_t)record->payload_bytes;
    if (room < size) return 0;
    out[0] = 'E';
    out[1] = 'P';
    out[2] = EPIC_RECORD_VERSION;
    out[3] = record->type;
    epic_put(out + 4, record->device, 2);
    epic_put(out + 6, record->survey, 2);
    epic_put(out + 8, record->boot, 4);
    epic_put(out + 12, record->sequence, 4);
    epic_put(out + 16, record->event, 4);
    epic_put(out + 20, record->sample_time_us, 8);
    memcpy(out + 28, record->model_hash, 8);
    epic_put(out + 36, record->payload_bytes, 2);
    if (record->payload_bytes) memcpy(out + EPIC_RECORD_HEADER_BYTES, record->payload, record->payload_bytes);
    return size;
}

// Read exactly one record of `size` bytes; `payload` points into `data`. Returns 1, or 0 if `data` is no record.
static inline int epic_record_decode(const uint8_t *data, size_t size, struct epic_record *record) {
    if (size < EPIC_RECORD_HEADER_BYTES || data[0] != 'E' || data[1] != 'P' || data[2] != EPIC_RECORD_VERSION) return 0;
    if (data[3] < EPIC_LATENT || data[3] > EPIC_RECORDING) return 0;
    if (size != EPIC_RECORD_HEADER_BYTES + (size_t)epic_get(data + 36, 2)) return 0;
    record->type = data[3];
    record->device = (uint16_t)epic_get(data + 4, 2);
    record->survey = (uint16_t)epic_get(data + 6, 2);
    record->boot = (uint32_t)epic_get(data + 8, 4);
    record->sequence = (uint32_t)epic_get(data + 12, 4);
    record->event = (uint32_t)epic_get(data + 16, 4);
    record->sample_time_us = epic_get(data + 20, 8);
    memcpy(record->model_hash, data + 28, 8);
    record->payload_bytes = (uint16_t)epic_get(data + 36, 2);
    record->payload = data + EPIC_RECORD_HEADER_BYTES;
    return 1;
}

// Returns 1 if the acknowledgement `ack` names the record of this boot and sequence; it is then not sent again.
static inline int epic_acknowledges(const struct epic_record *ack, uint32_t boot, uint32_t sequence) {
    if (ack->type != EPIC_ACK || ack->boot != boot) return 0;
    if (ack->sequence == sequence) return 1;
    for (size_t at = 0; at + 4 <= ack->payload_bytes; at += 4)
        if ((uint32_t)epic_get(ack->payload + at, 4) == sequence) return 1;
    return 0;
}
