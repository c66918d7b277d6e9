{{- define "cpe.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "cpe.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "cpe.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "cpe.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cpe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cpe.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/component: metrics
app.kubernetes.io/part-of: {{ include "cpe.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "cpe.selectorLabels" . }}
{{- if .Values.releaseLabel }}
release: {{ .Release.Name }}
{{- end }}
{{- with .Values.commonLabels }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}

{{/* The labels and further ones, which win: (list . further). */}}
{{- define "cpe.labelsAnd" -}}
{{- toYaml (mergeOverwrite (include "cpe.labels" (first .) | fromYaml) (deepCopy (last . | default dict))) }}
{{- end }}

{{- define "cpe.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "cpe.fullname" .) }}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "cpe.image" -}}
{{- $registry := .Values.global.imageRegistry | default .Values.image.registry -}}
{{- $image := printf "%s/%s:%s" $registry .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- with .Values.image.digest }}{{ $image = printf "%s@%s" $image . }}{{ end -}}
{{- $image }}
{{- end }}

{{/* Two lists of names or of maps with a name, as one list of maps. */}}
{{- define "cpe.imagePullSecrets" -}}
{{- range concat .Values.global.imagePullSecrets .Values.imagePullSecrets }}
{{- if kindIs "map" . }}
- name: {{ .name }}
{{- else }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty as soon as anything needs root. */}}
{{- define "cpe.root" -}}
{{- if or .Values.rootFiles.enabled .Values.kernelLog.enabled .Values.syncProbe.enabled }}root{{ end }}
{{- end }}

{{/* Not empty where the pod has another user or group than by default: that of MicroK8s opens files which nobody may read. */}}
{{- define "cpe.otherGroup" -}}
{{- $ids := pick .Values.securityContext "runAsUser" "runAsGroup" "supplementalGroups" "fsGroup" -}}
{{- if ne (toJson $ids) `{"runAsGroup":65534,"runAsUser":65534}` }}other{{ end }}
{{- end }}

{{/*
Environment variables. Samplers that could only fail with the rights of this pod are switched off: an etcd that may not
be asked looks like one that is down. Whoever has a section for one in `config` decides himself.
*/}}
{{- define "cpe.env" -}}
{{- $env := dict -}}
{{- $off := ternary (list) (list "etcd" "etcd_snapshot" "certificate" "registry_keys" "snap" "journal" "volume") (not (empty (include "cpe.root" .))) -}}
{{- if not (or (include "cpe.root" .) (include "cpe.otherGroup" .)) }}{{ $off = concat $off (list "dqlite" "kine" "args") }}{{ end -}}
{{- if not .Values.kernelLog.enabled }}{{ $off = append $off "kernel" }}{{ end -}}
{{- range $off -}}
{{- if not (hasKey $.Values.config .) -}}
{{- $env = set $env (printf "CONTROLPLANE_EXPORTER__%s__ENABLED" (upper .)) "false" -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := mergeOverwrite $env .Values.env }}
- name: {{ $name }}
  {{- /* As text a large number would be written with an exponent, which the agent takes for no whole one. */}}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}

{{/* Who runs the pod: root as soon as anything needs it. */}}
{{- define "cpe.podSecurityContext" -}}
{{- $context := deepCopy .Values.securityContext -}}
{{- if include "cpe.root" . -}}
{{- $context = mergeOverwrite $context (dict "runAsUser" 0 "runAsGroup" 0 "runAsNonRoot" false) -}}
{{- end -}}
{{- toYaml $context }}
{{- end }}

{{/* Kubernetes refuses privileged together with allowPrivilegeEscalation: false. */}}
{{- define "cpe.containerSecurityContext" -}}
{{- $context := deepCopy .Values.containerSecurityContext -}}
{{- if .Values.kernelLog.enabled -}}
{{- $context = mergeOverwrite (omit $context "allowPrivilegeEscalation" "capabilities") (dict "privileged" true) -}}
{{- else if or .Values.rootFiles.enabled .Values.syncProbe.enabled -}}
{{- $capabilities := deepCopy ($context.capabilities | default dict) -}}
{{- $added := append ($capabilities.add | default list) "DAC_READ_SEARCH" -}}
{{- /* Where etcd has a user of its own (k0s, RKE2 with the CIS profile), root alone may not write into its directory. */}}
{{- if .Values.syncProbe.enabled }}{{ $added = append $added "DAC_OVERRIDE" }}{{ end -}}
{{- $added = uniq $added -}}
{{- $context = set $context "capabilities" (set $capabilities "add" $added) -}}
{{- end -}}
{{- toYaml $context }}
{{- end }}

{{/* Any of the labels: the terms of a node selector are alternatives. */}}
{{- define "cpe.affinity" -}}
{{- if .Values.affinity -}}
{{- toYaml .Values.affinity }}
{{- else if .Values.controlPlaneLabels -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
    {{- range .Values.controlPlaneLabels }}
    - matchExpressions:
      - key: {{ . }}
        operator: Exists
    {{- end }}
{{- end }}
{{- end }}

{{/* The limits of a monitor; 0 is none. */}}
{{- define "cpe.limits" -}}
{{- $monitor := . -}}
{{- range list "sampleLimit" "targetLimit" "labelLimit" "labelNameLengthLimit" "labelValueLengthLimit" }}
{{- if index $monitor . }}
{{ . }}: {{ index $monitor . | int }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a ServiceMonitor's and a PodMonitor's endpoint have in common. */}}
{{- define "cpe.endpoint" -}}
{{- $monitor := .monitor -}}
honorLabels: false
{{- range list "interval" "scrapeTimeout" "proxyUrl" }}
{{- if index $monitor . }}
{{ . }}: {{ index $monitor . }}
{{- end }}
{{- end }}
{{- range list "basicAuth" "tlsConfig" "authorization" "metricRelabelings" }}
{{- if index $monitor . }}
{{ . }}:
  {{- toYaml (index $monitor .) | nindent 2 }}
{{- end }}
{{- end }}
relabelings:
  {{- range .instance }}
  - sourceLabels: [{{ . }}]
    regex: (.+)
    targetLabel: instance
  {{- end }}
  {{- with .cluster }}
  - targetLabel: cluster
    replacement: {{ . | quote }}
  {{- end }}
  {{- with $monitor.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The kubelet has neither the certificate nor the password that a locked port wants. */}}
{{- define "cpe.probe" -}}
{{- $probe := .probe -}}
failureThreshold: {{ $probe.failureThreshold }}
{{- if .locked }}
tcpSocket:
  port: {{ .port }}
{{- else }}
httpGet:
  path: {{ .path }}
  port: {{ .port }}
  scheme: {{ upper $probe.httpGet.scheme }}
  {{- with $probe.httpGet.httpHeaders }}
  httpHeaders:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
initialDelaySeconds: {{ $probe.initialDelaySeconds }}
periodSeconds: {{ $probe.periodSeconds }}
successThreshold: {{ $probe.successThreshold }}
timeoutSeconds: {{ $probe.timeoutSeconds }}
{{- end }}
