{{- define "doorward.name" -}}
{{- printf "%s-webhook" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "doorward.selector" -}}
app.kubernetes.io/name: doorward-webhook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "doorward.labels" -}}
{{ include "doorward.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: doorward
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The list [root, image]: a reference to the image. */}}
{{- define "doorward.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The host that the API server calls. */}}
{{- define "doorward.host" -}}
{{- printf "%s.%s.svc" (include "doorward.name" .) .Release.Namespace -}}
{{- end -}}

{{- define "doorward.spiffeID" -}}
{{- printf "spiffe://%s%s" .Values.trustDomain .Values.identity.path -}}
{{- end -}}

{{/* Cluster-wide objects of two releases must not meet. */}}
{{- define "doorward.clusterName" -}}
{{- printf "%s.%s" (include "doorward.name" .) .Release.Namespace -}}
{{- end -}}

{{- define "doorward.secret" -}}
{{- if eq .Values.identity.source "secret" -}}
{{- required "identity.secret.name: which Secret holds the webhook's certificate?" .Values.identity.secret.name -}}
{{- else -}}
{{- printf "%s-identity" (include "doorward.name" .) -}}
{{- end -}}
{{- end -}}

{{- define "doorward.config" -}}
image: {{ include "doorward.image" (list . .Values.image) | quote }}
intercept_image: {{ include "doorward.image" (list . .Values.interceptImage) | quote }}
pull_policy: {{ .Values.image.pullPolicy }}
identity: {{ .Values.sidecar.identity | quote }}
intercept: {{ .Values.sidecar.intercept }}
user: {{ .Values.sidecar.user | int64 }}
{{- with .Values.sidecar.policy }}
policy: {{ . | quote }}
{{- end }}
resources:
  cpu_request: {{ .Values.sidecar.resources.cpuRequest | quote }}
  cpu_limit: {{ .Values.sidecar.resources.cpuLimit | quote }}
  memory_request: {{ .Values.sidecar.resources.memoryRequest | quote }}
  memory_limit: {{ .Values.sidecar.resources.memoryLimit | quote }}
stop_delay: {{ .Values.sidecar.stopDelay }}
webhook:
  listen: 0.0.0.0:8443
  metrics: { listen: "0.0.0.0:9901" }
  identity:
    spiffe_id: {{ include "doorward.spiffeID" . | quote }}
    {{- if eq .Values.identity.source "spire" }}
    workload_api: {{ printf "unix:///spiffe-workload-api/%s" .Values.identity.spire.socket | quote }}
    {{- else }}
    files: { cert: /var/run/doorward/tls.crt, key: /var/run/doorward/tls.key, bundle: /var/run/doorward/ca.crt }
    {{- end }}
  log: { level: {{ .Values.webhook.logLevel | quote }}, format: json }
  sandbox: { mode: {{ .Values.webhook.sandbox }} }
{{- end -}}
